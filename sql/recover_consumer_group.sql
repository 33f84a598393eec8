-- Recovery makes the slot of a group anew and gives the group from the table what the old slot had not. Where the old slot
-- stood is known from the checkpoint: rows that are visible in it the group has; of the others it gets all, some a second time.

-- Nobody reads for the group until the end of the transaction, and nobody else moves it.
create or replace function postbox._lock_group(group_name text, what text) returns postbox.consumer_group
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    found_group postbox.consumer_group;
    -- A session that has just ended keeps its locks for a moment.
    give_up_at timestamptz := clock_timestamp() + interval '1 second';
begin
    while not pg_try_advisory_xact_lock(hashtextextended('postbox.consumer_group ' || group_name, 0)) loop
        if clock_timestamp() > give_up_at then
            raise exception using errcode = 'object_in_use',
                message = format('consumer group "%s" is being moved or made by another session', group_name),
                hint = 'postbox.consumer_groups shows it once that session is done.';
        end if;
        perform pg_sleep(0.02);
    end loop;
    -- Behind the lock: what is read here names slots that will be dropped.
    select * into found_group from postbox.consumer_group g where g.name = group_name;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('consumer group %s does not exist', coalesce('"' || group_name || '"', 'NULL')),
            hint = 'The view postbox.consumer_groups lists the groups.';
    end if;
    -- The active member holds it; to the member itself it is given. One that is told to pause leaves once what is under way has ended.
    if found_group.paused_at is not null then
        give_up_at := clock_timestamp() + interval '10 seconds';
    end if;
    while not pg_try_advisory_xact_lock(postbox._member_lock(group_name)) loop
        if clock_timestamp() > give_up_at then
            raise exception using errcode = 'object_in_use',
                message = format('consumer group "%s" cannot %s while member "%s" delivers for it', group_name, what, found_group.member),
                hint = case when found_group.paused_at is null
                    then format('Make its members stand aside: postbox group pause %1$s. Afterwards let them go on: postbox group resume %1$s.', group_name)
                    else 'The group is paused, and the member leaves when its sink is done with what is under way: try again then.' end;
        end if;
        perform pg_sleep(0.02);
    end loop;
    return found_group;
end
$function$;
comment on function postbox._lock_group(text, text) is 'Private: the group, which no member reads and nobody else moves until the transaction ends';

create or replace function postbox.recover_consumer_group(name text, timeout interval default '1 minute') returns name
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    deadline constant timestamptz := coalesce(clock_timestamp() + timeout, 'infinity');
    found_group postbox.consumer_group;
    server postbox._server;
    known postbox.checkpoint;
    done pg_snapshot[] := '{}';
    generation int;
    slot name;
    reader int;
begin
    found_group := postbox._lock_group(name, 'recover');
    perform postbox._require_before_writes(format('consumer group "%s" cannot recover', name));
    perform postbox._require_replayable(o.outbox, 'recovering a group')
        from postbox.consumer_group_outbox o
        join postbox._marker m on m.outbox = o.outbox
        where o.group_name = found_group.name;
    perform postbox._require_published(o.outbox, format('the source pgoutput of consumer group "%s"', name))
        from postbox.consumer_group_outbox o
        where o.group_name = found_group.name and found_group.source = 'pgoutput';
    select s.active_pid into reader
        from pg_replication_slots s
        where s.slot_name = found_group.slot_name and s.database = current_database();
    if reader is not null then
        raise exception using errcode = 'object_in_use',
            message = format('the slot of consumer group "%s" is read by process %s', name, reader),
            hint = format('Stop that consumer, or cut it off with pg_terminate_backend(%s).', reader);
    end if;
    select * into server from postbox._server;
    -- Transaction ids of another server say nothing about rows that were written here since.
    select * into known from postbox.checkpoint c where c.group_name = name and c.system_identifier = server.system_identifier;
    if found then
        done := array[known.snapshot];
    end if;
    generation := postbox._next_generation(name, found_group.slot_generation);
    slot := postbox._slot_name(name, generation);
    -- A former attempt that did not come to its end has left it; nothing was read from it.
    perform postbox._drop_slot(slot);

    -- The group goes on with this slot only if this transaction commits, which also says what the slot does not have.
    perform postbox._make_slot(slot, found_group.source, found_group.failover, deadline);
    begin
        perform postbox._wait_for_writers(deadline);
        perform postbox._durable();
        -- Not before: no slot is made in a transaction that has written.
        perform postbox._follow_outboxes(name);
        perform postbox._require_published(o.outbox, format('the source pgoutput of consumer group "%s"', name))
            from postbox.consumer_group_outbox o
            where o.group_name = found_group.name and found_group.source = 'pgoutput';
        perform postbox._start_backfill(name, done, 'recover');
        update postbox.consumer_group g
            set slot_name = slot, slot_generation = generation, epoch = g.epoch + 1,
                system_identifier = server.system_identifier, timeline = server.timeline
            where g.name = found_group.name;
        if not found then
            raise exception using errcode = 'undefined_object',
                message = format('consumer group "%s" was dropped by another session just now', name),
                hint = 'The view postbox.consumer_groups lists the groups that are left.';
        end if;
        delete from postbox.checkpoint c where c.group_name = found_group.name and c.system_identifier <> server.system_identifier;
        insert into postbox.audit (action, subject, detail)
            values ('recover', name, jsonb_build_object(
                'slot', slot, 'former_slot', found_group.slot_name, 'checkpoint_lsn', known.lsn, 'checkpoint_taken_at', known.taken_at,
                'timeline', server.timeline, 'from_timeline', found_group.timeline));
    exception when others or query_canceled then
        perform pg_drop_replication_slot(slot);
        raise;
    end;
    -- Last, because no rollback brings it back.
    perform postbox._drop_slot(found_group.slot_name);
    return slot;
end
$function$;
comment on function postbox.recover_consumer_group(text, interval) is
    'Makes the slot of a group anew after it was lost, and delivers from the outboxes what the group had not confirmed; returns the name of the slot';

-- A group's source is the output plugin of its slot. Another one gets a slot at the same position: nothing is lost, and nothing
-- comes twice but what had not been confirmed.

create or replace function postbox._check_source(source text, group_name text) returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
begin
    source := coalesce(source, postbox._default_source());
    if source not in ('postbox', 'pgoutput') then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('consumer group "%s" cannot have the source "%s"', group_name, source),
            hint = 'It is postbox (the output plugin of Postbox) or pgoutput (PostgreSQL''s own).';
    end if;
    return source;
end
$function$;
comment on function postbox._check_source(text, text) is 'Private: the output plugin that was asked for, or the one that this installation has';

-- Whether the transaction with this id (without its epoch) had committed when the snapshot was taken.
create or replace function postbox._was_there(id xid, snapshot pg_snapshot) returns boolean
    language sql stable strict
    return (
        select pg_visible_in_snapshot((c.next - ((c.next - id::text::bigint) % 4294967296 + 4294967296) % 4294967296)::text::xid8, snapshot)
        from (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as next) c
    );
comment on function postbox._was_there(xid, pg_snapshot) is 'Private: whether a row of a catalog was there when the snapshot was taken';

create or replace function postbox.set_source(group_name text, source text) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    wanted constant text := postbox._check_source(source, group_name);
    found_group postbox.consumer_group;
    server postbox._server;
    slot pg_replication_slots;
    generation int;
    new_slot name;
    too_new text;
begin
    found_group := postbox._lock_group(group_name, 'change its source');
    if found_group.source = wanted then
        return false;
    end if;
    perform postbox._require_before_writes(format('the source of consumer group "%s" cannot be changed', group_name));
    select * into server from postbox._server;
    select * into slot from pg_replication_slots s where s.slot_name = found_group.slot_name and s.database = current_database();
    if slot.confirmed_flush_lsn is null or slot.wal_status = 'lost' or found_group.system_identifier <> server.system_identifier
        or found_group.timeline <> server.timeline
    then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('consumer group "%s" has no position to go on from: its slot is missing, lost or of another server', group_name),
            hint = postbox._position_hint(found_group);
    end if;
    if slot.active_pid is not null then
        raise exception using errcode = 'object_in_use',
            message = format('the slot of consumer group "%s" is read by process %s', group_name, slot.active_pid),
            hint = format('Stop that consumer, or cut it off with pg_terminate_backend(%s).', slot.active_pid);
    end if;
    if found_group.failover then
        raise exception using errcode = 'feature_not_supported',
            message = format('the source of consumer group "%s" cannot be changed: its slot is kept on standbys', group_name),
            detail = 'PostgreSQL does not copy that property of a slot.',
            hint = 'Make another group with this source, let the present one come to its end, and drop it.';
    end if;
    if wanted = 'pgoutput' then
        perform postbox._require_published(o.outbox, format('the source pgoutput of consumer group "%s"', found_group.name))
            from postbox.consumer_group_outbox o
            where o.group_name = found_group.name
            order by o.outbox_name;
        -- What pgoutput decodes from the group's position on it must find in the publication as it was then.
        select format('%I.%I', m.schema, m.name) into too_new
            from postbox.consumer_group_outbox o
            join postbox._marker m on m.outbox = o.outbox
            join postbox._published p on p.outbox = o.outbox
            where o.group_name = found_group.name
              and not exists (
                -- What is visible in these was committed before the group's position.
                select from (
                    select c.snapshot from postbox.checkpoint c where c.group_name = o.group_name
                    union all
                    select s.snapshot from postbox.sample s
                        where s.system_identifier = server.system_identifier and s.timeline = server.timeline and s.lsn <= slot.confirmed_flush_lsn
                ) past
                where postbox._was_there(p.outbox_xid, past.snapshot) and postbox._was_there(p.publication_xid, past.snapshot))
            order by 1 limit 1;
        if found then
            raise exception using errcode = 'object_not_in_prerequisite_state',
                message = format('consumer group "%s" has not come to the moment yet at which outbox %s was published', group_name, too_new),
                detail = 'From an earlier position pgoutput could not read on.',
                hint = 'Let its member run until it has delivered what was published since, and 5 seconds more (its next checkpoint), or postbox.maintain() has run; then pause it and try again.';
        end if;
    end if;
    generation := postbox._next_generation(group_name, found_group.slot_generation);
    new_slot := postbox._slot_name(group_name, generation);
    -- A former attempt that did not come to its end has left it; nothing was read from it.
    perform postbox._drop_slot(new_slot);
    perform pg_copy_logical_replication_slot(slot.slot_name, new_slot, false, wanted::name);
    begin
        perform postbox._durable();
        update postbox.consumer_group g
            set slot_name = new_slot, slot_generation = generation, source = wanted, epoch = g.epoch + 1
            where g.name = found_group.name;
        if not found then
            raise exception using errcode = 'undefined_object',
                message = format('consumer group "%s" was dropped by another session just now', group_name),
                hint = 'The view postbox.consumer_groups lists the groups that are left.';
        end if;
        perform postbox._note_markers(group_name);
        insert into postbox.audit (action, subject, detail)
            values ('set_source', group_name, jsonb_build_object('source', wanted, 'from_source', found_group.source, 'slot', new_slot,
                'former_slot', slot.slot_name, 'position', slot.confirmed_flush_lsn));
    exception when others or query_canceled then
        perform pg_drop_replication_slot(new_slot);
        raise;
    end;
    -- Last, because no rollback brings it back.
    perform postbox._drop_slot(slot.slot_name);
    return true;
end
$function$;
comment on function postbox.set_source(text, text) is
    'Moves a group that is paused or without members to the output plugin postbox or pgoutput, at the position where it is; false: it has that source already';

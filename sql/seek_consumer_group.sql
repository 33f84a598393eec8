-- Seeking moves a group. Backwards, what is stored in the outboxes is given again and the slot stays where it is; forwards,
-- the slot is moved on. The target is met to the safe side: never later than asked for, and at most one sample earlier.

create or replace function postbox._is_timestamp(value text) returns boolean
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $function$
begin
    perform value::timestamptz;
    return true;
exception when data_exception or feature_not_supported then
    return false;
end
$function$;
comment on function postbox._is_timestamp(text) is 'Private: whether this can be read as a time';

-- The transaction of the stored event of that id, in any outbox of the group.
create or replace function postbox._find_event(group_name text, event_id text) returns xid8
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    target record;
    found_xid xid8;
begin
    for target in
        select m.schema, m.name, postbox._marker_column(m.arguments, 'xid') as xid_column, postbox._marker_column(m.arguments, 'event_id') as id_column
        from postbox._followed_outbox o
        join postbox._marker m on m.outbox = o.outbox
        where o.group_name = _find_event.group_name
        order by o.outbox_name
    loop
        execute format('select o.%I from %I.%I o where o.%I::text in ($1, lower($1)) limit 1', target.xid_column, target.schema, target.name, target.id_column)
            into found_xid using event_id;
        exit when found_xid is not null;
    end loop;
    return found_xid;
end
$function$;
comment on function postbox._find_event(text, text) is 'Private: by which transaction a stored event was published';

create or replace function postbox._count_stored(group_name text, done pg_snapshot[]) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    target record;
    rows bigint;
    total bigint := 0;
begin
    for target in
        select m.schema, m.name, postbox._marker_column(m.arguments, 'xid') as xid_column
        from postbox._followed_outbox o
        join postbox._marker m on m.outbox = o.outbox
        where o.group_name = _count_stored.group_name
    loop
        execute format('select count(*) from %I.%I o where not postbox._is_done(o.%I, $1)', target.schema, target.name, target.xid_column)
            into rows using done;
        total := total + rows;
    end loop;
    return total;
end
$function$;
comment on function postbox._count_stored(text, pg_snapshot[]) is 'Private: how many stored events are not done';

create or replace function postbox.seek_consumer_group(
    name text, target text, dry_run boolean default false, timeout interval default '1 minute',
    out direction text, out from_lsn pg_lsn, out to_lsn pg_lsn, out stored_events bigint
)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    deadline constant timestamptz := coalesce(clock_timestamp() + timeout, 'infinity');
    found_group postbox.consumer_group;
    server postbox._server;
    slot pg_replication_slots;
    start postbox.sample;
    event_xid xid8;
    done pg_snapshot[] := '{}';
    kind text;
    gone record;
begin
    if target is null or name is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = 'a seek needs a group and a target, neither of them NULL',
            hint = 'The target is earliest, latest, a time, a position of the log, or the id of an event.';
    end if;
    perform postbox._check_dry_run(dry_run);
    found_group := postbox._lock_group(name, 'seek');
    perform postbox._require_read_committed(format('consumer group "%s" cannot seek', name));
    perform postbox._require_replayable(o.outbox, 'seek')
        from postbox._followed_outbox o
        join postbox._marker m on m.outbox = o.outbox
        where o.group_name = found_group.name and target <> 'latest';
    select * into server from postbox._server;
    select * into slot from pg_replication_slots s where s.slot_name = found_group.slot_name and s.database = current_database();
    if slot.confirmed_flush_lsn is null or slot.wal_status = 'lost' or found_group.system_identifier <> server.system_identifier
        or found_group.timeline <> server.timeline
    then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('consumer group "%s" has no position to seek from: its slot is missing, lost or of another server', name),
            hint = postbox._position_hint(found_group);
    end if;
    from_lsn := slot.confirmed_flush_lsn;
    kind := case
        when target in ('earliest', 'latest') then target
        when target ~* '^[0-9a-f]{1,8}/[0-9a-f]{1,8}$' then 'lsn'
        when target ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then 'event'
        when postbox._is_timestamp(target) then 'time'
        else 'event' end;

    if kind = 'latest' then
        to_lsn := pg_current_wal_flush_lsn();
    elsif kind = 'lsn' then
        to_lsn := target::pg_lsn;
        if to_lsn > pg_current_wal_flush_lsn() then
            raise exception using errcode = 'invalid_parameter_value',
                message = format('position %s lies beyond the end of the log, which is %s', to_lsn, pg_current_wal_flush_lsn()),
                hint = 'Seek to latest to skip everything that has been published.';
        end if;
        select * into start from postbox.sample s
            where s.system_identifier = server.system_identifier and s.lsn <= to_lsn
            order by s.lsn desc limit 1;
    elsif kind = 'time' then
        if target::timestamptz > clock_timestamp() then
            raise exception using errcode = 'invalid_parameter_value',
                message = format('%s lies in the future: it is %s', target::timestamptz, clock_timestamp()),
                hint = 'Seek to latest to skip everything that has been published.';
        end if;
        select * into start from postbox.sample s
            where s.system_identifier = server.system_identifier and s.taken_at <= target::timestamptz
            order by s.taken_at desc limit 1;
        to_lsn := start.lsn;
    elsif kind = 'event' then
        event_xid := postbox._find_event(name, target);
        if event_xid is null then
            raise exception using errcode = 'no_data_found',
                message = format('no outbox of consumer group "%s" holds an event with the id "%s"', name, target),
                hint = 'Retention may have removed it, or it was never published there. '
                    'The target is earliest, latest, a time, a position of the log, or the id of an event.';
        end if;
        select * into start from postbox.sample s
            where s.system_identifier = server.system_identifier and not pg_visible_in_snapshot(event_xid, s.snapshot)
            order by s.taken_at desc limit 1;
        to_lsn := start.lsn;
    end if;
    if start.snapshot is not null then
        done := array[start.snapshot];
    end if;
    -- A group that has dealt with everything is at latest already.
    direction := case when kind = 'latest' or to_lsn > from_lsn then 'forward' else 'backward' end;

    if not dry_run then
        -- Before the locks: those who drop an outbox write, and want its lock.
        perform postbox._wait_for_writers(deadline);
        perform postbox._follow_outboxes(name);
        -- What retention has not removed by now stays until it sees what this group needs.
        perform pg_advisory_xact_lock(postbox._lock_key(o.outbox))
            from (select o.outbox from postbox.consumer_group_outbox o where o.group_name = found_group.name order by o.outbox) o;
    end if;
    if direction = 'backward' then
        -- What retention has removed must all be from before the start.
        select r.outbox, r.at into gone
            from postbox.removed r
            join postbox._followed_outbox o on o.outbox = r.outbox and o.group_name = found_group.name
            where kind <> 'earliest' and (start.snapshot is null or not postbox._includes(start.snapshot, r.snapshot))
            limit 1;
        if found then
            raise exception using errcode = 'invalid_parameter_value',
                message = format('%s is before what outbox %s still holds', target, gone.outbox::regclass),
                detail = format('Retention removed older events at %s.', gone.at),
                hint = 'Seek to earliest to be given everything that is there; postbox.set_retention keeps events longer from now on.';
        end if;
        stored_events := case when dry_run then postbox._count_stored(name, done) end;
    end if;
    if dry_run then
        return;
    end if;

    perform postbox._durable();
    if direction = 'backward' then
        perform postbox._start_backfill(name, done, 'seek to ' || target, queued => true);
    else
        -- What a backfill had still to give lies before the target as well, as far as it is visible there.
        if kind = 'latest' then
            delete from postbox.backfill b where b.group_name = found_group.name;
            start.snapshot := pg_current_snapshot();
            to_lsn := pg_current_wal_flush_lsn();
        elsif kind = 'lsn' then
            update postbox.backfill b set done = array[start.snapshot]
                where b.group_name = found_group.name and not b.finished and start.snapshot is not null;
        else
            -- What committed while the sample was taken lies below its position and is not visible in its snapshot: the slot
            -- passes it, the table has it.
            update postbox.backfill b set finished = true where b.group_name = found_group.name;
            perform postbox._start_backfill(name, done, 'seek to ' || target, queued => true);
        end if;
        update postbox.checkpoint c
            set snapshot = start.snapshot, lsn = coalesce(start.lsn, to_lsn), taken_at = clock_timestamp()
            where c.group_name = found_group.name and start.snapshot is not null and postbox._includes(start.snapshot, c.snapshot);
    end if;
    update postbox.consumer_group g set epoch = g.epoch + 1 where g.name = found_group.name;
    insert into postbox.audit (action, subject, detail)
        values ('seek', name, jsonb_build_object('target', target, 'direction', direction, 'from_lsn', from_lsn, 'to_lsn', to_lsn));
    perform postbox._alert('consumer_seeked', name, jsonb_build_object('target', target, 'direction', direction, 'from_lsn', from_lsn, 'to_lsn', to_lsn));
    if direction = 'forward' and to_lsn > from_lsn then
        -- Last, because no rollback brings it back.
        perform pg_replication_slot_advance(slot.slot_name, to_lsn);
    end if;
end
$function$;
comment on function postbox.seek_consumer_group(text, text, boolean, interval) is
    'Moves a group to earliest, latest, a time, a position of the log or an event: what lies behind it is delivered (again), what lies before it is not';

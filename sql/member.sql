-- A group has one active member: the one whose control session holds the group's lock. The others ask for the lock now and
-- then; none of them waits inside the server, where a waiting function would hold back vacuum.
--
-- SQLSTATE PB001: the server is not the one that the group's position belongs to.
--
-- The lock is the lease. The server ends the control session of a member that is not heard of for session_timeout
-- (idle_session_timeout of that session), and a member delivers nothing later than its last answered message plus that time.

create or replace function postbox._member_lock(group_name text) returns bigint
    language sql immutable strict parallel safe
    return hashtextextended('postbox.member ' || group_name, 0);
comment on function postbox._member_lock(text) is 'Private: the key of the advisory lock that the active member of a group holds';

-- One question of a standby. NULL: there is no such group.
create or replace function postbox._try_membership(group_name text) returns text
    language sql volatile
    begin atomic
        select case
            when g.paused_at is not null then 'paused'
            when pg_try_advisory_lock(postbox._member_lock(g.name)) then 'active'
            else 'standby' end
        from postbox.consumer_group g
        where g.name = group_name;
    end;
comment on function postbox._try_membership(text) is 'Private: takes the lock of the group if it is free, and says what the caller is then';

-- PostgreSQL itself brings such a slot to a standby, never ahead of what the standby has. One that came with a backup of the first primary is none;
-- after a failover they are not told apart.
create or replace function postbox._was_synced(slot name) returns boolean
    language sql stable
    begin atomic
        select exists (
            select from pg_replication_slots s
            where s.slot_name = slot and (to_jsonb(s) ->> 'failover')::boolean and (to_jsonb(s) ->> 'synced')::boolean);
    end;
comment on function postbox._was_synced(name) is 'Private: whether the slot followed its group through a failover';

create or replace function postbox._position_hint(of_group postbox.consumer_group) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    return case
        when of_group.timeline <> (select s.timeline from postbox._server s) and postbox._was_synced(of_group.slot_name)
            then format('Its slot came along in a failover, which the next member takes note of: postbox run --group %s.', of_group.name)
        else format('Recover it first: postbox group recover %s.', of_group.name) end;
comment on function postbox._position_hint(postbox.consumer_group) is 'Private: what to do about a group without a position';

-- Takes the group over: from the commit on, whatever a former member still wants to write is refused.
create or replace function postbox._activate(
    group_name text, member text, session_timeout interval, max_processing interval,
    out epoch bigint, out slot_name text, out former text, out system_identifier bigint, out timeline int, out outboxes oid[], out outbox_names text[]
)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    found_group postbox.consumer_group;
    server postbox._server;
begin
    perform postbox._durable();
    select * into server from postbox._server;
    -- A member that died has not released the group.
    select case when g.released_at is null then g.member end into former
        from postbox.consumer_group g
        where g.name = group_name
        for no key update;
    update postbox.consumer_group g
        set epoch = g.epoch + 1, member = _activate.member, active_since = clock_timestamp(), released_at = null,
            session_timeout = _activate.session_timeout, max_processing = _activate.max_processing
        where g.name = group_name
        returning * into found_group;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('consumer group "%s" does not exist', group_name),
            hint = 'The view postbox.consumer_groups lists the groups.';
    end if;
    epoch := found_group.epoch;
    slot_name := found_group.slot_name;
    select array_agg(o.outbox::oid order by o.outbox_name), array_agg(o.outbox_name order by o.outbox_name)
        into outboxes, outbox_names
        from postbox.consumer_group_outbox o
        where o.group_name = _activate.group_name;
    -- One that was made anew under its name, or taken out: its events would be passed over without a word.
    if found_group.source = 'pgoutput' then
        perform postbox._require_published(m.outbox, format('the source pgoutput of consumer group "%s"', found_group.name))
            from postbox.consumer_group_outbox o
            join postbox._marker m on m.outbox = o.outbox or format('%I.%I', m.schema, m.name) = o.outbox_name
            where o.group_name = _activate.group_name;
    end if;
    if found_group.system_identifier <> server.system_identifier then
        raise exception using errcode = 'PB001',
            message = format('consumer group "%s" belongs to another server', group_name),
            detail = format('Its position is one of system %s, and this server is system %s.', found_group.system_identifier, server.system_identifier),
            hint = format('If this copy is to deliver from now on, say so: postbox group recover %s. What the group had not confirmed at its last checkpoint is delivered again.', group_name);
    end if;
    system_identifier := server.system_identifier;
    timeline := server.timeline;
    if found_group.timeline <> server.timeline then
        if not postbox._was_synced(found_group.slot_name) then
            raise exception using errcode = 'PB001',
                message = format('the server of consumer group "%s" was promoted or restored: timeline %s has become %s', group_name, found_group.timeline, server.timeline),
                detail = 'Its slot, if there is one, may stand behind or beyond events that the group has not had.',
                hint = format('Go on from the last checkpoint, nothing lost and some events twice: postbox group recover %s, or postbox run --recover.', group_name);
        end if;
        update postbox.consumer_group g set timeline = server.timeline where g.name = group_name;
        insert into postbox.audit (action, subject, detail)
            values ('failover', group_name, jsonb_build_object('timeline', server.timeline, 'from_timeline', found_group.timeline, 'member', _activate.member));
    end if;
end
$function$;
comment on function postbox._activate(text, text, interval, interval) is 'Private: makes the caller, which holds the lock, the active member';

create or replace function postbox._require_epoch(group_name text, epoch bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    -- Until this transaction is over nobody takes the group over.
    perform from postbox.consumer_group g where g.name = group_name and g.epoch = _require_epoch.epoch for share;
    if not found then
        raise exception using errcode = 'invalid_cursor_state',
            message = format('member of epoch %s of consumer group "%s" has been replaced', epoch, group_name),
            hint = 'Another member has taken over, or the group was moved or dropped.';
    end if;
end
$function$;
comment on function postbox._require_epoch(text, bigint) is 'Private: refuses what a former member writes';

-- What a member asks about once a second. The snapshot is that of the statement, so it is older than the position.
create or replace function postbox._beat(
    group_name text,
    out epoch bigint, out paused boolean, out snapshot pg_snapshot, out lsn pg_lsn
)
    language sql volatile
    begin atomic
        select g.epoch, g.paused_at is not null, pg_current_snapshot(),
            case when pg_is_in_recovery() then null else pg_current_wal_insert_lsn() end
        from postbox.consumer_group g
        where g.name = group_name;
    end;
comment on function postbox._beat(text) is 'Private: the sign of life of a member, and what it has to know';

create or replace function postbox._checkpoint(group_name text, epoch bigint, snapshot pg_snapshot, lsn pg_lsn) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    perform postbox._durable();
    perform postbox._require_epoch(group_name, epoch);
    if exists (select from postbox.backfill b where b.group_name = _checkpoint.group_name and not b.finished) then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('consumer group "%s" is still being given rows from the table', group_name),
            hint = 'A checkpoint counts when these are delivered.';
    end if;
    -- Of what is out of the publication events are passed over: as long as no checkpoint goes beyond them, recovery delivers them.
    if exists (select from postbox.consumer_group g where g.name = _checkpoint.group_name and g.source = 'pgoutput') then
        perform postbox._require_published(o.outbox, format('the source pgoutput of consumer group "%s"', _checkpoint.group_name))
            from postbox._followed_outbox o
            where o.group_name = _checkpoint.group_name;
    end if;
    insert into postbox.checkpoint as c (group_name, snapshot, lsn, system_identifier, timeline, taken_at)
        select g.name, _checkpoint.snapshot, _checkpoint.lsn, g.system_identifier, g.timeline, clock_timestamp()
        from postbox.consumer_group g
        where g.name = _checkpoint.group_name
    on conflict on constraint checkpoint_pkey do update set
        snapshot = excluded.snapshot, lsn = excluded.lsn, system_identifier = excluded.system_identifier,
        timeline = excluded.timeline, taken_at = excluded.taken_at;
    delete from postbox.backfill b where b.group_name = _checkpoint.group_name and b.upto_lsn <= _checkpoint.lsn;
end
$function$;
comment on function postbox._checkpoint(text, bigint, pg_snapshot, pg_lsn) is
    'Private: the group has dealt with everything that committed below lsn, which was read after the snapshot';

create or replace function postbox._backfilled(group_name text, epoch bigint, outbox oid, "position" bigint, finished boolean) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    perform postbox._durable();
    perform postbox._require_epoch(group_name, epoch);
    update postbox.backfill b
        set position = greatest(b.position, _backfilled.position), finished = _backfilled.finished
        where b.group_name = _backfilled.group_name and b.outbox = _backfilled.outbox::regclass;
end
$function$;
comment on function postbox._backfilled(text, bigint, oid, bigint, boolean) is 'Private: the stored rows up to this seq are delivered';

-- Whoever runs for a moment only, as from cron, has written no checkpoint: the newest sample that it has come past is one.
create or replace function postbox._release(group_name text, epoch bigint, durable pg_lsn) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    known postbox.checkpoint;
    reached postbox.sample;
begin
    perform postbox._durable();
    update postbox.consumer_group g set released_at = clock_timestamp() where g.name = group_name and g.epoch = _release.epoch;
    if not found or exists (select from postbox.backfill b where b.group_name = _release.group_name and not b.finished) then
        return;
    end if;
    select * into known from postbox.checkpoint c where c.group_name = _release.group_name;
    select s.* into reached
        from postbox.sample s
        join postbox._server server on server.system_identifier = s.system_identifier and server.timeline = s.timeline
        where s.lsn <= durable
        order by s.lsn desc limit 1;
    if reached.lsn > known.lsn and postbox._includes(reached.snapshot, known.snapshot) or known.group_name is null and reached.lsn is not null then
        begin
            perform postbox._checkpoint(group_name, epoch, reached.snapshot, reached.lsn);
        exception when object_not_in_prerequisite_state then
            -- An outbox is not published any more, which the next start says.
            null;
        end;
    end if;
end
$function$;
comment on function postbox._release(text, bigint, pg_lsn) is
    'Private: the member leaves in order, and the group has dealt with everything that committed below a position';

create or replace function postbox._set_paused(group_name text, paused boolean) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    perform postbox._durable();
    update postbox.consumer_group g
        set paused_at = case when paused then clock_timestamp() end
        where g.name = group_name and (g.paused_at is not null) <> paused;
    if found then
        insert into postbox.audit (action, subject) values (case when paused then 'pause' else 'resume' end, group_name);
        return true;
    end if;
    if not exists (select from postbox.consumer_group g where g.name = group_name) then
        raise exception using errcode = 'undefined_object',
            message = format('consumer group %s does not exist', coalesce('"' || group_name || '"', 'NULL')),
            hint = 'The view postbox.consumer_groups lists the groups.';
    end if;
    return false;
end
$function$;
comment on function postbox._set_paused(text, boolean) is 'Private: pause_consumer_group and resume_consumer_group';

create or replace function postbox.pause_consumer_group(name text) returns boolean
    language sql volatile
    begin atomic
        select postbox._set_paused(name, true);
    end;
comment on function postbox.pause_consumer_group(text) is
    'Makes the members of a group stop delivering within a second or two and leave its slot, which goes on holding back WAL; false: it is paused already';

create or replace function postbox.resume_consumer_group(name text) returns boolean
    language sql volatile
    begin atomic
        select postbox._set_paused(name, false);
    end;
comment on function postbox.resume_consumer_group(text) is 'Lets a paused group go on; false: it is not paused';

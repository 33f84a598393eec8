-- Everything about a group in one text, for people.

create or replace function postbox.describe_consumer_group(name text) returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    g record;
    lag record;
    known record;
    member record;
    fill record;
    pin record;
    letters bigint;
    text text;
begin
    select c.*, o.slot_generation, o.failover, o.paused_at, o.wal_budget, o.over_budget, o.epoch, o.member as last_member, o.active_since, o.released_at
        into g
        from postbox.consumer_groups c join postbox.consumer_group o on o.name = c.name
        where c.name = describe_consumer_group.name;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('consumer group %s does not exist', coalesce('"' || describe_consumer_group.name || '"', 'NULL')),
            hint = 'The view postbox.consumer_groups lists the groups.';
    end if;
    select * into lag from postbox.consumer_lag l where l.group_name = g.name;
    select * into known from postbox.checkpoint c where c.group_name = g.name;
    select count(*) into letters from postbox.dead_letters d where d.group_name = g.name;
    text := format(E'Group:         %s\n', g.name)
        || format(E'Outboxes:      %s\n', array_to_string(g.outboxes, ', ')
            || case when g.missing_outboxes <> '{}' then format(' (gone: %s)', array_to_string(g.missing_outboxes, ', ')) else '' end)
        || format(E'State:         %s\n', case
            when g.wal_status in ('missing', 'lost') then 'slot ' || g.wal_status || ': recover the group'
            when g.paused_at is not null then 'paused since ' || date_trunc('second', g.paused_at)
            -- Whoever is given rows from the table does not read the slot yet.
            when g.active or exists (select from postbox.active_leases l where l.group_name = g.name) then 'active' else 'no active member' end)
        || format(E'Source:        %s\n', g.source)
        || format(E'Slot:          %s (%s%s)\n', g.slot_name, g.wal_status, case when g.failover then ', kept on standbys' else '' end)
        || format(E'Confirmed:     %s\n', coalesce(g.confirmed_flush_lsn::text, '-'))
        || format(E'Log end:       %s\n', case when pg_is_in_recovery() then pg_last_wal_receive_lsn() else pg_current_wal_insert_lsn() end)
        || format(E'Lag:           %s, %s s, %s events (%s)\n', coalesce(pg_size_pretty(lag.bytes), '-'),
            coalesce(round(lag.seconds::numeric, 1)::text, '-'), coalesce(lag.events::text, '-'), coalesce(lag.precision, 'unknown'))
        || format(E'Restart lag:   %s%s\n', coalesce(pg_size_pretty(lag.restart_lag_bytes), '-'), 
            -- Most of it lies before what is confirmed: the group has dealt with it, and cannot let go of it.
            coalesce(case when lag.restart_lag_bytes > 2 * lag.bytes then ', held back by ' else ', oldest transaction: ' end || lag.restart_holder, ''))
        || format(E'WAL budget:    %s\n', coalesce(pg_size_pretty(g.wal_budget) || ', beyond it ' || g.over_budget, 'none'))
        || format(E'Checkpoint:    %s\n', coalesce(format('%s, taken %s', known.lsn, date_trunc('second', known.taken_at)), 'none'))
        || format(E'Dead letters:  %s\n', letters);
    for fill in select * from postbox.backfill b where b.group_name = g.name and not b.finished order by b.outbox loop
        text := text || format(E'From table:    %s, because of %s, since %s\n', postbox._shown(fill.outbox::text), fill.reason, date_trunc('second', fill.started_at));
    end loop;
    for pin in
        select r.schema, r.name, r.pinned_by
        from postbox.retention_status r
        where format('%I.%I', r.schema, r.name) = any (g.outboxes) and cardinality(r.pinned_by) > 0
        order by 1, 2
    loop
        text := text || format(E'Pinned:        %I.%I by %s\n', pin.schema, pin.name, array_to_string(pin.pinned_by, '; '));
    end loop;
    for member in
        select s.*, l.expires_at, case when a.client_port = -1 then 'this host' else host(a.client_addr) end as host
        from postbox.consumer_status s
        left join postbox.active_leases l on l.group_name = s.group_name and l.pid = s.pid
        left join pg_stat_activity a on a.pid = s.pid
        where s.group_name = g.name and s.role is not null
        order by s.role, s.since
    loop
        text := text || format(E'Member:        %s, %s, process %s from %s, last contact %s%s\n', coalesce(member.member, 'unknown'), member.role, member.pid, coalesce(member.host, 'unknown'),
            coalesce(date_trunc('milliseconds', member.last_contact)::text, 'not to be seen by this role'),
            ', lease until ' || date_trunc('milliseconds', member.expires_at));
    end loop;
    return text;
end
$function$;
comment on function postbox.describe_consumer_group(text) is 'Everything about a group, for people: position, lag and what holds it up, members and their leases, what retention waits for, dead letters';

-- How many messages an inbox has, and what became of them. What is pending is counted as long as that is cheap; beyond, the last count of
-- maintenance is given, with its time. What has been is summed up by maintenance (inbox_total); what came since is added.

-- The messages that wait behind others in lanes, with their types, at most so many, to be executed with the inbox and that number.
create or replace function postbox._lane_types_sql(box postbox.inbox) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select format(
            'select %1$s as event_type, l.blocked is not distinct from ''parked'' as is_parked
             from (select p.* from postbox._pending_lane p where p.inbox = $1 limit $2) l
             cross join %2$s
             limit $2',
            'r.event_type', postbox._lane_messages_sql(box, postbox._inbox_column((box).columns, 'event_type', 'r', 'text') || ' as event_type'));
    end;
comment on function postbox._lane_types_sql(postbox.inbox) is 'Private: a query for what waits in lanes';

-- What is pending and dead, by type, if that is all in `most` rows of each kind. parked: what waits behind a dead letter and is shown with it. knows_due:
-- of everything it is known whether it is delayed.
create or replace function postbox._count_inbox(box postbox.inbox, most int, out is_all boolean, out knows_due boolean, out pending jsonb, out dead jsonb)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
as $function$
declare
    rows bigint;
    dead_rows bigint;
    in_lanes jsonb;
    arrivals text;
    arrived bigint := 0;
    noted jsonb;
    may_read constant boolean := has_table_privilege(box.relation, 'select')
        and (box.style = 'claim' or has_table_privilege(postbox._inbox_view(box, 'pending_' || box.name), 'select'));
begin
    if box.style = 'update' and not may_read then
        rows := most + 1;
    elsif box.style = 'update' then
        execute format(
            'select coalesce(sum(c.messages), 0), jsonb_agg(to_jsonb(c))
             from (
                 select p.event_type as type, count(*) as messages, count(*) filter (where p.state = ''delayed'') as delayed
                 from (select v.event_type, v.state from %s v limit $1 + 1) p group by p.event_type
             ) c', postbox._inbox_view(box, 'pending_' || box.name))
            into rows, pending using most;
    else
        select coalesce(sum(c.rows), 0), coalesce(sum(c.arrived), 0), jsonb_agg(to_jsonb(c)) into rows, arrived, pending
            from (
                select b.event_type as type, count(*) as rows, sum(b.messages) filter (where b.is_arrival) as arrived, sum(b.messages) as messages, sum(b.messages) filter (where b.is_leased) as leased,
                    sum(b.messages) filter (where b.is_delayed) as delayed
                from (
                    select p.event_type, cardinality(p.event_ids) as messages, p.token is not null as is_leased, p.tier < 0 as is_arrival,
                        p.token is null and p.ready_at > clock_timestamp() as is_delayed
                    from postbox._pending_batch p where p.inbox = box.id and p.tier > -32768 limit most + 1
                ) b
                group by b.event_type
            ) c;
        if box.ordered_at is not null and rows <= most and not may_read then
            -- Who may not read the messages is not told their types.
            select count(*), jsonb_build_array(jsonb_build_object('messages', sum(l.size) filter (where not l.is_parked), 'parked', sum(l.size) filter (where l.is_parked)))
                into rows, in_lanes
                from (
                    select postbox._lane_size(p.arrived, p.head) as size, p.blocked is not distinct from 'parked' as is_parked
                    from postbox._pending_lane p where p.inbox = box.id limit most + 1
                ) l;
        elsif box.ordered_at is not null and rows <= most then
            execute format(
                'select coalesce(sum(c.rows), 0), jsonb_agg(to_jsonb(c))
                 from (
                     select l.event_type as type, count(*) as rows, count(*) filter (where not l.is_parked) as messages, count(*) filter (where l.is_parked) as parked
                     from (%s) l group by l.event_type
                 ) c', postbox._lane_types_sql(box))
                into rows, in_lanes using box.id, most + 1;
        end if;
        -- Of arrivals that are in no lane yet the first ones.
        arrivals := postbox._noted_due_sql(box, -32767, -1, most);
        if rows <= most and may_read and arrivals is not null then
            execute format(
                'select jsonb_agg(to_jsonb(c))
                 from (
                     select n.event_type as type, count(*) as delayed from (%s) n
                     where n.due > clock_timestamp() and n.ready_at <= clock_timestamp() group by n.event_type
                 ) c', arrivals)
                into noted;
        end if;
    end if;
    select coalesce(sum(c.messages), 0), jsonb_agg(to_jsonb(c)) into dead_rows, dead
        from (
            select d.event_type as type, count(*) as messages
            from (select q.event_type from postbox.inbox_dead q where q.inbox = box.id limit most + 1) d
            group by d.event_type
        ) c;
    is_all := rows <= most and dead_rows <= most;
    knows_due := arrivals is null or arrived = 0 or arrived <= most and may_read;
    pending := coalesce(pending, '[]') || coalesce(in_lanes, '[]') || coalesce(noted, '[]');
    dead := coalesce(dead, '[]');
end
$function$;
comment on function postbox._count_inbox(postbox.inbox, int) is 'Private: what is pending and dead, if that is not too much to count';

create or replace function postbox._inbox_counts(inbox int)
    returns table (
        event_type text, pending bigint, leased bigint, delayed bigint, dead bigint, processed bigint, failed bigint, duplicates bigint,
        conflicts bigint, discarded bigint, average_seconds float8, is_exact boolean, as_of timestamptz
    )
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
as $function$
declare
    -- Rows of the queue, of the dead and of the log each: some hundred pages.
    most constant int := 500;
    box postbox.inbox;
    counted record;
    kept postbox.inbox_keeping;
    tail_rows bigint;
    sampled_at timestamptz;
    now constant timestamptz := clock_timestamp();
begin
    select * into box from postbox.inbox i where i.id = _inbox_counts.inbox;
    select * into kept from postbox.inbox_keeping k where k.inbox = box.id;
    select * into counted from postbox._count_inbox(box, most);
    select s.taken_at into sampled_at from postbox.inbox_sample s where s.inbox = box.id limit 1;
    select count(*) into tail_rows
        from (select from postbox.inbox_log g where g.inbox = box.id and g.id > coalesce(kept.folded_id, 0) limit most + 1) t;
    return query
        with totals as (
            select t.event_type, t.what, t.messages, t.seconds from postbox.inbox_total t where t.inbox = box.id
            union all
            select g.event_type, g.what, g.messages::bigint, g.seconds from postbox.inbox_log g
            where tail_rows <= most and g.inbox = box.id and g.id > coalesce(kept.folded_id, 0)
        ),
        parts as (
            select t.event_type, 0::bigint as pending, 0::bigint as leased, 0::bigint as delayed, 0::bigint as dead, t.what, t.messages, t.seconds from totals t
            union all
            select p.type, coalesce(p.messages, 0), coalesce(p.leased, 0), coalesce(p.delayed, 0), coalesce(p.parked, 0), null, 0, 0
            from jsonb_to_recordset(counted.pending) as p(type text, messages bigint, leased bigint, delayed bigint, parked bigint)
            where counted.is_all
            union all
            select d.type, 0, 0, 0, d.messages, null, 0, 0 from jsonb_to_recordset(counted.dead) as d(type text, messages bigint) where counted.is_all
            union all
            select s.event_type, s.pending, s.leased, s.delayed, s.dead, null, 0, 0 from postbox.inbox_sample s where s.inbox = box.id and not counted.is_all
            union all
            -- Too much to count, and maintenance has not done it yet.
            select null, 0, 0, 0, 0, null, 0, 0 where not counted.is_all and sampled_at is null
        )
        select p.event_type, sum(p.pending)::bigint, sum(p.leased)::bigint, sum(p.delayed)::bigint, sum(p.dead)::bigint,
            coalesce(sum(p.messages) filter (where p.what = 'processed'), 0)::bigint,
            coalesce(sum(p.messages) filter (where p.what = 'failed'), 0)::bigint,
            coalesce(sum(p.messages) filter (where p.what in ('duplicate', 'conflict')), 0)::bigint,
            coalesce(sum(p.messages) filter (where p.what = 'conflict'), 0)::bigint,
            coalesce(sum(p.messages) filter (where p.what = 'discarded'), 0)::bigint,
            sum(p.seconds) filter (where p.what = 'processed') / nullif(sum(p.messages) filter (where p.what = 'processed'), 0),
            counted.is_all and counted.knows_due and tail_rows <= most,
            -- Of the oldest number among them; NULL: maintenance has not counted yet.
            case when counted.is_all and tail_rows <= most then now
                 when counted.is_all then kept.folded_at
                 when tail_rows <= most or sampled_at is null then sampled_at
                 else least(sampled_at, kept.folded_at) end
        from parts p
        group by p.event_type
        order by p.event_type;
end
$function$;
comment on function postbox._inbox_counts(int) is 'Private: what an inbox holds and has done, by event_type; exact, or as of a moment';

create or replace function postbox.inbox_status(name text default null)
    returns table (
        inbox_name text, inbox_table text, is_managed boolean, style text, is_ordered boolean, has_priorities boolean, failure_policy text, max_retries int,
        retention interval, dedup_window interval, dead_retention interval, paused_at timestamptz,
        pending bigint, leased bigint, delayed bigint, dead bigint, processed bigint, failed_attempts bigint, duplicates bigint, conflicts bigint, discarded bigint,
        average_seconds float8, is_exact boolean, as_of timestamptz, removal_waits_for text
    )
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
begin
    if name is not null and not exists (select from postbox.inbox i where i.name = inbox_status.name) then
        raise exception using errcode = 'undefined_object',
            message = format('inbox "%s" does not exist', name),
            hint = 'postbox.inbox_status() lists the inboxes; postbox.create_inbox makes one.';
    end if;
    return query
        select i.name, i.relation::text, i.managed, i.style, i.ordered_at is not null,
            exists (select from postbox.inbox_tier t where t.inbox = i.id), i.failure_policy, i.max_retries,
            i.retention, i.dedup_window, i.dead_retention, i.paused_at,
            coalesce(sum(c.pending), 0)::bigint, coalesce(sum(c.leased), 0)::bigint, coalesce(sum(c.delayed), 0)::bigint, coalesce(sum(c.dead), 0)::bigint,
            coalesce(sum(c.processed), 0)::bigint, coalesce(sum(c.failed), 0)::bigint, coalesce(sum(c.duplicates), 0)::bigint, coalesce(sum(c.conflicts), 0)::bigint,
            coalesce(sum(c.discarded), 0)::bigint,
            sum(c.average_seconds * c.processed) / nullif(sum(c.processed), 0),
            coalesce(bool_and(c.is_exact), true), case when count(*) filter (where not c.is_exact) = 0 then clock_timestamp() else min(c.as_of) end,
            postbox._removal_waits_for(i)
        from postbox.inbox i
        left join lateral postbox._inbox_counts(i.id) c on true
        where inbox_status.name is null or i.name = inbox_status.name
        group by i.id
        order by i.name;
end
$function$;
comment on function postbox.inbox_status(text) is
    'Inboxes, their settings and what they hold: exact (is_exact), or as of the moment as_of where that is too much to count at every look';

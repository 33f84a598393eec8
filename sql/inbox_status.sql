-- How many messages an inbox has, and what became of them. What is pending is counted as long as that is cheap; beyond, the last count of
-- maintenance is given, with its time. What has been is summed up by maintenance (inbox_total); what came since is added.

-- The messages of lanes with their types, at most so many, to be executed with the inbox and that number.
create or replace function postbox._lane_types_sql(box postbox.inbox) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select format(
            'select %1$s as event_type, l.token is not null and r.lane_place = l.next as is_leased,
                 l.token is null and l.ready_at > clock_timestamp() and r.lane_place = l.next as is_delayed
             from (select p.* from postbox._pending_lane p where p.inbox = $1 limit $2) l
             cross join %2$s
             where not exists (select from postbox.inbox_dead d where d.inbox = $1 and d.event_id = r.event_id_text)
             limit $2',
            'r.event_type', postbox._lane_messages_sql(box, postbox._inbox_column((box).columns, 'event_type', 'r', 'text') || ' as event_type'));
    end;
comment on function postbox._lane_types_sql(postbox.inbox) is 'Private: a query for what waits in lanes';

-- What is pending and dead, by type: counted up to `most` rows of each kind. NULL in pending or dead: there are more.
create or replace function postbox._count_inbox(box postbox.inbox, most int, out pending jsonb, out dead jsonb)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_sort = off
    set enable_hashjoin = off
    set enable_mergejoin = off
as $function$
declare
    rows bigint;
    of_lanes jsonb := '[]';
begin
    if box.style = 'update' then
        execute format(
            'select count(*), coalesce(jsonb_agg(jsonb_build_object(''type'', c.event_type, ''messages'', 1, ''delayed'', (c.state = ''delayed'')::int)), ''[]'')
             from (select p.event_type, p.state from %s p limit $1 + 1) c',
            (select format('%I.%I', n.nspname, 'pending_' || box.name) from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = box.relation))
            into rows, pending using most;
        if rows > most then
            pending := null;
        end if;
        execute format(
            'select count(*), coalesce(jsonb_agg(jsonb_build_object(''type'', c.event_type, ''messages'', 1)), ''[]'')
             from (select p.event_type from %s p limit $1 + 1) c',
            (select format('%I.%I', n.nspname, 'dlq_' || box.name) from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = box.relation))
            into rows, dead using most;
        if rows > most then
            dead := null;
        end if;
        return;
    end if;
    select count(*), coalesce(jsonb_agg(jsonb_build_object('type', b.event_type, 'messages', b.messages,
            'leased', case when b.is_leased then b.messages end, 'delayed', case when b.is_delayed then b.messages end)), '[]')
        into rows, pending
        from (
            select p.event_type, cardinality(p.event_ids) as messages, p.token is not null as is_leased,
                p.token is null and p.ready_at > clock_timestamp() as is_delayed
            from postbox._pending_batch p where p.inbox = box.id limit most + 1
        ) b;
    if rows > most then
        pending := null;
    elsif box.ordered_at is not null then
        execute format(
            'select count(*), coalesce(jsonb_agg(jsonb_build_object(''type'', c.event_type, ''messages'', 1, ''leased'', c.is_leased::int, ''delayed'', c.is_delayed::int)), ''[]'')
             from (%s) c', postbox._lane_types_sql(box))
            into rows, of_lanes using box.id, most + 1;
        pending := case when rows <= most then pending || of_lanes end;
    end if;
    select count(*), coalesce(jsonb_agg(jsonb_build_object('type', d.event_type, 'messages', 1)), '[]') into rows, dead
        from (select c.event_type from postbox.inbox_dead c where c.inbox = box.id limit most + 1) d;
    if rows > most then
        dead := null;
    end if;
end
$function$;
comment on function postbox._count_inbox(postbox.inbox, int) is 'Private: what is pending and dead, if that is not too much to count';

create or replace function postbox._inbox_counts(inbox int)
    returns table (
        event_type text, pending bigint, leased bigint, delayed bigint, dead bigint, processed bigint, failed bigint, duplicates bigint,
        discarded bigint, average_seconds float8, is_exact boolean, as_of timestamptz
    )
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
as $function$
declare
    -- Rows of the queue, of the dead and of the log each: some hundred pages.
    most constant int := 2000;
    box postbox.inbox;
    counted record;
    kept postbox.inbox_keeping;
    tail_rows bigint;
    sampled_at timestamptz;
    is_counted boolean;
begin
    select * into box from postbox.inbox i where i.id = _inbox_counts.inbox;
    select * into kept from postbox.inbox_keeping k where k.inbox = box.id;
    select * into counted from postbox._count_inbox(box, most);
    select s.taken_at into sampled_at from postbox.inbox_sample s where s.inbox = box.id limit 1;
    select count(*) into tail_rows
        from (select from postbox.inbox_log g where g.inbox = box.id and g.id > coalesce(kept.folded_id, 0) limit most + 1) t;
    is_counted := counted.pending is not null and counted.dead is not null;
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
            select p.type, p.messages, coalesce(p.leased, 0), coalesce(p.delayed, 0), 0, null, 0, 0
            from jsonb_to_recordset(counted.pending) as p(type text, messages bigint, leased bigint, delayed bigint)
            union all
            select d.type, 0, 0, 0, d.messages, null, 0, 0 from jsonb_to_recordset(counted.dead) as d(type text, messages bigint)
            union all
            select s.event_type, case when counted.pending is null then s.pending else 0 end, case when counted.pending is null then s.leased else 0 end,
                case when counted.pending is null then s.delayed else 0 end, case when counted.dead is null then s.dead else 0 end, null, 0, 0
            from postbox.inbox_sample s
            where s.inbox = box.id and not is_counted
            union all
            -- Too much to count, and maintenance has not done it yet.
            select null, 0, 0, 0, 0, null, 0, 0 where not is_counted and sampled_at is null
        )
        select p.event_type, sum(p.pending)::bigint, sum(p.leased)::bigint, sum(p.delayed)::bigint, sum(p.dead)::bigint,
            coalesce(sum(p.messages) filter (where p.what = 'processed'), 0)::bigint,
            coalesce(sum(p.messages) filter (where p.what = 'failed'), 0)::bigint,
            coalesce(sum(p.messages) filter (where p.what in ('duplicate', 'conflict')), 0)::bigint,
            coalesce(sum(p.messages) filter (where p.what = 'discarded'), 0)::bigint,
            sum(p.seconds) filter (where p.what = 'processed') / nullif(sum(p.messages) filter (where p.what = 'processed'), 0),
            is_counted and tail_rows <= most,
            -- Of the oldest number among them; NULL: maintenance has not counted yet.
            case when is_counted and tail_rows <= most then clock_timestamp()
                 when is_counted then kept.folded_at
                 when tail_rows <= most then sampled_at
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
        pending bigint, leased bigint, delayed bigint, dead bigint, processed bigint, failed_attempts bigint, duplicates bigint, discarded bigint,
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
            coalesce(sum(c.processed), 0)::bigint, coalesce(sum(c.failed), 0)::bigint, coalesce(sum(c.duplicates), 0)::bigint, coalesce(sum(c.discarded), 0)::bigint,
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

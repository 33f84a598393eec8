-- What each inbox shows in views of its own, beside its table. They read the state that workers write, so they are as new as the query,
-- and what they cost grows with what they show, not with what has been processed.

-- Batches and lanes with messages, each branch along an index of its own: an inbox does not pay for others.
create or replace view postbox._pending_batch as
    select b.* from postbox.inbox_batch b where b.token is null and b.crashes < 2
    union all
    select b.* from postbox.inbox_batch b where b.token is null and b.crashes >= 2
    union all
    select b.* from postbox.inbox_batch b where b.token is not null;
comment on view postbox._pending_batch is 'Private: inbox_batch, to be read along its indexes';

-- The head of a lane is in a batch, is a dead letter, or has not come.
create or replace view postbox._pending_lane as
    select l.* from postbox._pending_batch b cross join lateral unnest(b.lanes) as u(key) join postbox.inbox_lane l on l.inbox = b.inbox and l.key = u.key
    union all
    select l.* from postbox.inbox_lane l where l.blocked is not null
    union all
    select l.* from postbox.inbox_lane l where l.has_gap and l.head is null;
comment on view postbox._pending_lane is 'Private: lanes that messages wait in, to be read along their indexes';

-- How many messages wait in a lane behind its head.
create or replace function postbox._lane_size(arrived int8multirange, head text) returns bigint
    language sql immutable parallel safe
    return (select coalesce(sum(upper(a.numbers) - lower(a.numbers)), 0) from unnest(arrived) as a(numbers)) - (head is not null)::int;
comment on function postbox._lane_size(int8multirange, text) is 'Private: how many messages wait in a lane';

-- The messages of a lane l behind its head, as a subquery of alias r: those of its numbers that no other message has.
create or replace function postbox._lane_messages_sql(box postbox.inbox, row_columns text) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select format(
            'lateral unnest(l.arrived) as span
             cross join lateral (
                 select %1$s
                 from %4$s r
                 where r.%5$I = l.key::%6$s and r.%3$I >= greatest(lower(span), l.next + 1) and r.%3$I < upper(span)
                   and not coalesce(r.%2$I::text = any (l.displaced), false)
                 offset 0
             ) r',
            row_columns, (box).columns ->> 'event_id', (box).columns ->> 'sequence_num', (box).relation, (box).columns ->> 'aggregate_id',
            postbox._inbox_type(box, 'aggregate_id'));
    end;
comment on function postbox._lane_messages_sql(postbox.inbox, text) is 'Private: SQL for the messages that wait in a lane';

-- A view that may be there already. Views on it are in the way only if its columns change.
create or replace function postbox._replace_inbox_view(box postbox.inbox, prefix text, query text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    full_name constant text := postbox._inbox_view(box, prefix || '_' || box.name);
    present constant regclass := to_regclass(full_name);
begin
    if present is not null and present not in (select v from postbox._inbox_views(box) v) then
        raise exception using errcode = 'duplicate_table',
            message = format('relation "%s", which is to be a view of inbox "%s", exists already', full_name, box.name),
            hint = 'Rename that relation, or choose another name for the inbox.';
    end if;
    begin
        execute format('create %s view %s as %s', case when present is not null then 'or replace' end, full_name, query);
    exception when invalid_table_definition then
        execute format('drop view %s', full_name);
        execute format('create view %s as %s', full_name, query);
    end;
    execute format('comment on view %s is %L', full_name, postbox._inbox_view_comment(box, prefix || '_' || box.name));
end
$function$;
comment on function postbox._replace_inbox_view(postbox.inbox, text, text) is 'Private: makes a view beside the table, or makes it anew';

create or replace function postbox._make_inbox_views(inbox_name text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box postbox.inbox;
    -- What the table says of a message, the same columns in each view.
    row_columns text;
    listed text;
    id_type text;
    pending text;
    dead text;
    truth text;
    kept_columns text;
    state_name text;
    waiting text;
    -- When a message is due that is not sorted into its lane yet; NULL: its batch says it.
    due text;
begin
    select * into strict box from postbox.inbox i where i.name = inbox_name;
    due := case when box.ordered_at is not null and box.columns ? 'visible_at' then format('r.%I', box.columns ->> 'visible_at') end;
    id_type := postbox._inbox_type(box, 'event_id');
    row_columns := concat_ws(', ',
        postbox._inbox_column(box.columns, 'event_id', 'r', 'text') || ' as event_id',
        postbox._inbox_column(box.columns, 'event_type', 'r', 'text') || ' as event_type',
        postbox._inbox_column(box.columns, 'source', 'r', 'text') || ' as source',
        postbox._inbox_column(box.columns, 'aggregate_id', 'r', 'text') || ' as aggregate_id',
        postbox._inbox_column(box.columns, 'sequence_num', 'r', 'bigint') || ' as sequence_num',
        postbox._inbox_column(box.columns, 'priority', 'r', 'int') || ' as priority',
        postbox._inbox_column(box.columns, 'received_at', 'r', 'timestamptz') || ' as received_at',
        postbox._inbox_json(box, 'payload') || ' as payload',
        postbox._inbox_json(box, 'headers') || ' as headers');
    listed := 'r.event_id, r.event_type, r.source, r.aggregate_id, r.sequence_num, r.priority, r.received_at, r.payload, r.headers';

    -- The columns of the table, three of them as they are in truth.
    select string_agg(coalesce(
               case a.attname
                   when box.columns ->> 'processed_at' then 'm.processed_at'
                   when box.columns ->> 'retry_count' then 'm.retry_count'
                   when box.columns ->> 'error' then 'm.error' end, format('r.%I', a.attname)) || format(' as %I', a.attname), ', ' order by a.attnum)
               || coalesce(', ' || nullif(concat_ws(', ',
                   case when not box.columns ? 'processed_at' and bool_and(a.attname <> 'processed_at') then 'm.processed_at' end,
                   case when not box.columns ? 'retry_count' and bool_and(a.attname <> 'retry_count') then 'm.retry_count' end,
                   case when not box.columns ? 'error' and bool_and(a.attname <> 'error') then 'm.error' end), ''), ''),
           case when bool_or(a.attname = 'state') then 'inbox_state' else 'state' end
        into kept_columns, state_name
        from pg_attribute a
        where a.attrelid = box.relation and a.attnum > 0 and not a.attisdropped;

    dead := format(
        'select d.event_id, d.event_type, r.source, coalesce(d.aggregate_id, r.aggregate_id) as aggregate_id, coalesce(d.sequence_num, r.sequence_num) as sequence_num,
             r.priority, r.received_at, r.payload, r.headers, d.why, d.error, d.attempts, d.first_failed_at, d.last_failed_at, d.died_at
         from postbox.inbox_dead d
         left join lateral (select %s from %s r where r.%I = d.event_id::%s offset 0) r on true
         where d.inbox = %s',
        row_columns, box.relation, box.columns ->> 'event_id', id_type, box.id);
    if box.style = 'update' then
        waiting := format('r.%I is null', box.columns ->> 'processed_at');
        pending := format(
            'select %s, null::text as tier, case when v.due > clock_timestamp() then ''delayed'' else ''waiting'' end as state, v.failures as attempts,
                 v.due as ready_at, null::text as worker, null::timestamptz as lease_until, v.error, null::timestamptz as first_failed_at,
                 null::timestamptz as last_failed_at
             from %s r cross join lateral (select coalesce(%s, 0) as failures, %s as error, coalesce(%s, %s) as due) v
             where %s and v.failures <= %s',
            row_columns, box.relation, postbox._inbox_column(box.columns, 'retry_count', 'r', 'int'),
            postbox._inbox_column(box.columns, 'error', 'r', 'text'), postbox._inbox_column(box.columns, 'visible_at', 'r', 'timestamptz'),
            postbox._inbox_column(box.columns, 'received_at', 'r', 'timestamptz'), waiting, box.max_retries);
        truth := format(
            'select r.*, case when not (%1$s) then ''processed'' when d.event_id is not null then ''dead'' when coalesce(%2$s, 0) > %3$s then ''discarded''
                 when %4$s > clock_timestamp() then ''delayed'' else ''waiting'' end as %5$I
             from %6$s r left join postbox.inbox_dead d on d.inbox = %7$s and d.event_id = r.%8$I::text',
            waiting, postbox._inbox_column(box.columns, 'retry_count', 'r', 'int'), box.max_retries,
            postbox._inbox_column(box.columns, 'visible_at', 'r', 'timestamptz'), state_name, box.relation, box.id, box.columns ->> 'event_id');
    else
        pending := format(
            'select %1$s, t.name as tier, %7$s as state, p.attempts, %8$s as ready_at, p.worker, p.lease_until, p.error, p.first_failed_at, p.last_failed_at
             from (
                 select e.id, b.tier < 0 as is_noted, case when b.tier < 0 then (-1 - b.tier)::smallint else b.tier end as tier, b.attempts, b.ready_at, b.worker, b.lease_until, b.error,
                     b.first_failed_at, b.last_failed_at,
                     case when b.token is not null then ''leased'' when b.ready_at > clock_timestamp() then ''delayed'' else ''waiting'' end as state
                 from postbox._pending_batch b cross join lateral unnest(b.event_ids) as e(id)
                 where b.inbox = %2$s
             ) p
             cross join lateral (select %3$s from %4$s r where r.%5$I = p.id::%6$s offset 0) r
             left join postbox.inbox_tier t on t.inbox = %2$s and t.tier = p.tier',
            listed, box.id, concat_ws(', ', row_columns, due || ' as due'), box.relation, box.columns ->> 'event_id', id_type,
            case when due is null then 'p.state' else 'case when p.is_noted and r.due > clock_timestamp() then ''delayed'' else p.state end' end,
            case when due is null then 'p.ready_at' else 'case when p.is_noted then greatest(p.ready_at, r.due) else p.ready_at end' end);
        if box.ordered_at is not null then
            pending := pending || format(
                ' union all
                 select %1$s, t.name, ''behind'', 0, null, null, null, null, null, null
                 from postbox._pending_lane l
                 cross join %2$s
                 left join postbox.inbox_tier t on t.inbox = %3$s and t.tier = l.tier
                 where l.inbox = %3$s and l.blocked is distinct from ''parked''',
                listed, postbox._lane_messages_sql(box, row_columns), box.id);
            dead := dead || format(
                ' union all
                 select %1$s, ''follower'', null, 0, null, null, null
                 from postbox._pending_lane l
                 cross join %2$s
                 where l.inbox = %3$s and l.blocked = ''parked''',
                listed, postbox._lane_messages_sql(box, row_columns), box.id);
        end if;

        truth := format(
            'select %1$s, m.state as %2$I
             from %3$s r
             left join (
                 select e.id, case when b.token is not null then ''leased'' when b.ready_at > clock_timestamp() then ''delayed'' else ''waiting'' end as state,
                     b.attempts - (b.token is not null)::int as failures, b.error, b.tier < 0 as is_noted
                 from postbox._pending_batch b cross join lateral unnest(b.event_ids) as e(id)
                 where b.inbox = %4$s
             ) b on b.id = r.%5$I::text
             left join postbox.inbox_dead d on d.inbox = %4$s and d.event_id = r.%5$I::text
             %6$s
             left join (
                 select distinct on (e.id) e.id, g.at, g.what
                 from postbox.inbox_log g cross join lateral unnest(g.event_ids) as e(id)
                 where g.inbox = %4$s and g.what in (''processed'', ''discarded'')
                 order by e.id, g.id desc
             ) g on g.id = r.%5$I::text
             left join (
                 select e.id, count(*)::int as failures
                 from postbox.inbox_log f cross join lateral unnest(f.event_ids) as e(id)
                 where f.inbox = %4$s and f.what = ''failed''
                 group by e.id
             ) f on f.id = r.%5$I::text
             cross join lateral (
                 select s.state,
                     case when s.state = ''processed'' then coalesce(g.at, %7$s) end as processed_at,
                     coalesce(b.failures, d.attempts, f.failures, 0) as retry_count,
                     coalesce(b.error, d.error) as error
                 from (select coalesce(%9$s, case when d.event_id is not null then ''dead'' end, %8$s g.what,
                     case when %7$s is not null then ''processed'' else ''unknown'' end) as state) s
             ) m',
            kept_columns, state_name, box.relation, box.id, box.columns ->> 'event_id',
            case when box.ordered_at is not null then format(
                'left join lateral (
                     select l.blocked, true as is_behind
                     from postbox.inbox_lane l
                     where l.inbox = %3$s and l.key = r.%1$I::text and l.arrived @> r.%2$I::bigint and r.%2$I > l.next and d.event_id is null
                       and not coalesce(r.%4$I::text = any (l.displaced), false)
                 ) l on true', box.columns ->> 'aggregate_id', box.columns ->> 'sequence_num', box.id, box.columns ->> 'event_id') end,
            postbox._inbox_column(box.columns, 'processed_at', 'r', 'timestamptz'),
            case when box.ordered_at is not null then 'case when l.blocked = ''parked'' then ''follower'' when l.is_behind then ''behind'' end,' end,
            case when due is null then 'b.state' else format('case when b.is_noted and %s > clock_timestamp() then ''delayed'' else b.state end', due) end);
    end if;
    perform postbox._replace_inbox_view(box, 'pending', pending);
    perform postbox._replace_inbox_view(box, 'dlq', dead);
    perform postbox._replace_inbox_view(box, 'messages', truth);
    perform postbox._replace_inbox_view(box, 'stats', format(
        'select s.event_type, s.pending, s.processed, s.dead, s.failed as failed_attempts, s.average_seconds, s.is_exact, s.as_of from postbox._inbox_counts(%s) s', box.id));
end
$function$;
comment on function postbox._make_inbox_views(text) is 'Private: makes the views of an inbox, or makes them anew, as its settings are';

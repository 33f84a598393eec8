-- Order: from unordered batches to lanes and back, with all that is waiting.

create or replace function postbox._check_gap_alert_after(inbox text, gap_alert_after interval) returns void
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
as $function$
begin
    if gap_alert_after is null or gap_alert_after < interval '0' then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('gap_alert_after of inbox "%s" is %s, must be 0 or more', inbox, coalesce(gap_alert_after::text, 'NULL')),
            hint = 'How long a message may be missing before listeners of postbox_alert are told, for instance interval ''5 minutes''.';
    end if;
end
$function$;
comment on function postbox._check_gap_alert_after(text, interval) is 'Private: refuses an age of gaps that cannot be';

create or replace function postbox.enable_inbox_ordering(
    inbox            text,
    aggregate_id_col text     default 'aggregate_id',
    sequence_num_col text     default 'sequence_num',
    start_at         bigint   default 1,
    gap_alert_after  interval default '5 minutes'
) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box postbox.inbox := postbox._lock_inbox(inbox);
    aggregate_column text;
    sequence_column text;
    leased bigint;
    bad record;
begin
    if box.ordered_at is not null then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('inbox "%s" has had an order since %s', box.name, box.ordered_at),
            hint = format('To change it: postbox.disable_inbox_ordering(%L) first.', box.name);
    end if;
    perform postbox._check_gap_alert_after(box.name, gap_alert_after);
    if start_at >= 9223372036854775000 then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('start_at of inbox "%s" is %s, must be below 9223372036854775000', box.name, start_at),
            hint = 'The number of the first message of each aggregate, or NULL for whichever arrives first.';
    end if;
    -- The text of such a value finds it again, and equal values have equal texts.
    aggregate_column := postbox._inbox_role_column(box, 'aggregate_id', aggregate_id_col, '{text,character varying,uuid,smallint,integer,bigint}');
    sequence_column := postbox._inbox_role_column(box, 'sequence_num', sequence_num_col, '{smallint,integer,bigint}');
    -- What is handed out could not be kept in order with what is not.
    perform postbox._expire_leases(box, null);
    select sum(cardinality(b.event_ids)) into leased from postbox.inbox_batch b where b.inbox = box.id and b.token is not null;
    if leased > 0 then
        raise exception using errcode = 'object_in_use',
            message = format('%s messages of inbox "%s" are handed out', leased, box.name),
            hint = format('Call postbox.pause_inbox(%L), wait until they are done, then try again.', box.name);
    end if;
    execute format(
        'select r.%I::text as id from %s r where r.%I is not null and r.%4$I is not null and (r.%4$I >= 9223372036854775000 or octet_length(r.%3$I::text) > 1024) limit 1',
        box.columns ->> 'event_id', box.relation, aggregate_column, sequence_column) into bad;
    if bad.id is not null then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('message "%s" of inbox "%s" has no place in an order', bad.id, box.name),
            hint = 'An aggregate has 1024 bytes at most, a sequence number is below 9223372036854775000.';
    end if;

    update postbox.inbox i
        set columns = i.columns || jsonb_build_object('aggregate_id', aggregate_column, 'sequence_num', sequence_column),
            ordered_at = clock_timestamp(), sequence_start = start_at, gap_alert_after = enable_inbox_ordering.gap_alert_after
        where i.id = box.id
        returning * into box;
    -- Lanes look for their next message along it.
    if not exists (
        select from pg_index x join pg_class c on c.oid = x.indexrelid join pg_am m on m.oid = c.relam
        where x.indrelid = box.relation and x.indisvalid and x.indpred is null and m.amname = 'btree'
          and x.indkey[0] = (select a.attnum from pg_attribute a where a.attrelid = box.relation and a.attname = aggregate_column)
          and x.indkey[1] = (select a.attnum from pg_attribute a where a.attrelid = box.relation and a.attname = sequence_column)
    ) then
        execute format('create index on %s (%I, %I)', box.relation, aggregate_column, sequence_column);
    end if;
    perform postbox._arm_inbox(box.name);
    box := postbox._inbox(box.name);

    -- Aggregates of which something is done go on behind it; what is done beyond that is not waited for.
    execute format(
        'insert into postbox.inbox_lane (inbox, key, next, skipped)
         select $1, n.key, n.next, n.done * int8multirange(int8range(n.next, null))
         from (
             select d.key, d.done, postbox._next_number(d.done, d.lowest - 1) as next
             from (
                 select r.%1$I::text as key, range_agg(int8range(r.%2$I, r.%2$I + 1::bigint)) filter (where w.id is null) as done, min(r.%2$I)::bigint as lowest
                 from %3$s r
                 left join (
                     select e.id from postbox.inbox_batch b cross join lateral unnest(b.event_ids) as e(id) where b.inbox = $1
                 ) w on w.id = r.%4$I::text
                 where r.%1$I is not null and r.%2$I is not null
                 group by 1
             ) d
             where d.done is not null
         ) n',
        aggregate_column, sequence_column, box.relation, box.columns ->> 'event_id') using box.id;
    perform postbox._forget_floors(box.id);
    -- What waits is sorted like what arrives. All rows are written anew, so that whoever comes with an older snapshot fails.
    update postbox.inbox_batch b
        set tier = -1 - b.tier, ready_at = least(b.ready_at, clock_timestamp()), attempts = 0, crashes = 0, error = null, first_failed_at = null, last_failed_at = null
        where b.inbox = box.id;

    perform postbox._make_inbox_view(box, 'next_' || box.name, postbox._next_sql(box));
    perform postbox._make_inbox_view(box, 'gaps_' || box.name, postbox._gaps_sql(box));
    perform postbox._make_tier_views(box, postbox._inbox_tiers(box));
end
$function$;
comment on function postbox.enable_inbox_ordering(text, text, text, bigint, interval) is
    'From now on an inbox hands out the messages of an aggregate one by one, in the order of their sequence numbers. What waits is included, and no message may be handed out';

create or replace function postbox.disable_inbox_ordering(inbox text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box postbox.inbox := postbox._lock_inbox(inbox);
begin
    box := postbox._ordered_inbox(box);
    perform postbox._drop_inbox_view(box, 'next_' || box.name);
    perform postbox._drop_inbox_view(box, 'gaps_' || box.name);
    perform postbox._forget_floors(box.id);
    -- Who was handed a message keeps it, and what has been tried stays tried. All rows are written anew, so that whoever comes with an older snapshot
    -- fails.
    update postbox.inbox_batch b set lanes = null where b.inbox = box.id and b.lanes is not null;
    execute format(
        'with lane as (
             delete from postbox.inbox_lane l where l.inbox = $1 returning l.*
         ), note as (
             delete from postbox.inbox_batch b where b.inbox = $1 and b.tier < 0 returning b.event_ids
         ), waiting as (
             select r.%1$I::text as id, %2$s as type, %3$s as tier, %4$s as due, r.%5$I::text as key, r.%6$I::bigint as seq
             from lane l
             cross join lateral unnest(l.arrived) as a(numbers)
             join %7$s r on r.%5$I = l.key::%8$s and r.%6$I >= lower(a.numbers) and r.%6$I < upper(a.numbers)
             where not coalesce(r.%1$I::text = any (l.displaced), false)
               and not (r.%6$I = l.next and l.head is not null)
             -- Not all: a message with the number of another one is among what is noted and lies in its lane.
             union
             select r.%1$I::text, %2$s, %3$s, %4$s, r.%5$I::text, r.%6$I::bigint
             from note n cross join lateral unnest(n.event_ids) as e(id) join %7$s r on r.%1$I = e.id::%9$s
         )
         insert into postbox.inbox_batch (inbox, tier, ready_at, event_type, event_ids)
             select $1, b.tier, b.ready_at, b.type, array_agg(b.id order by b.key, b.seq)
             from (
                 select w.*, greatest(now(), w.due) as ready_at,
                        (row_number() over (partition by w.tier, w.type, w.due order by w.key, w.seq) - 1) / 50 as batch
                 from waiting w
             ) b
             group by b.tier, b.ready_at, b.type, b.batch',
        box.columns ->> 'event_id', postbox._inbox_column(box.columns, 'event_type', 'r', 'text'), postbox._inbox_tier_of(box, 'r'),
        postbox._inbox_column(box.columns, 'visible_at', 'r', 'timestamptz'), box.columns ->> 'aggregate_id', box.columns ->> 'sequence_num',
        box.relation, postbox._inbox_type(box, 'aggregate_id'), postbox._inbox_type(box, 'event_id')) using box.id;
    update postbox.inbox i set ordered_at = null, sequence_start = null where i.id = box.id returning * into box;
    perform postbox._arm_inbox(box.name);
    perform postbox._make_tier_views(box, postbox._inbox_tiers(box));
end
$function$;
comment on function postbox.disable_inbox_ordering(text) is
    'From now on an inbox hands out all that waits in no particular order. Where aggregates stood is forgotten; the index stays';

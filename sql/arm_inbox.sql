-- The triggers of an inbox. Their functions are made for each inbox, in its schema: a plan that names the table is kept for the session,
-- where dynamic SQL would be planned for every message.
--
-- Before each row: duplicates are noted, and what cannot be a message is refused. A duplicate is left to the unique key, which decides
-- it among concurrent ones too, unless retention has removed the first one. After each statement: the arrivals are noted in batches. Both only insert, so a
-- receiving transaction takes no lock but that of the unique key.

-- The expression for a role's column of a table or transition table, NULL of the type if it has none.
create or replace function postbox._inbox_column(columns jsonb, role text, alias text, type text) returns text
    language sql immutable
    return case when columns ? role then format('%s.%I', alias, columns ->> role) else 'null' end || '::' || type;
comment on function postbox._inbox_column(jsonb, text, text, text) is 'Private: SQL for the value of a role';

-- A column as JSON: JSON as it is, text as a string, bytea as a string in base64.
create or replace function postbox._inbox_type(box postbox.inbox, role text) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select format_type(a.atttypid, null)
        from pg_attribute a
        where a.attrelid = (box).relation and a.attname = (box).columns ->> role and not a.attisdropped;
    end;
comment on function postbox._inbox_type(postbox.inbox, text) is 'Private: the type of the column of a role';

create or replace function postbox._inbox_json(box postbox.inbox, role text) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select case postbox._inbox_type(box, role)
            when 'jsonb' then format('r.%I', (box).columns ->> role)
            when 'json' then format('postbox._as_jsonb(r.%I)', (box).columns ->> role)
            when 'bytea' then format('to_jsonb(encode(r.%I, ''base64''))', (box).columns ->> role)
            else case when (box).columns ? role then format('to_jsonb(r.%I)', (box).columns ->> role) else 'null::jsonb' end end;
    end;
comment on function postbox._inbox_json(postbox.inbox, text) is 'Private: SQL for the value of a role as JSON';

-- What makes two messages with the same id different.
create or replace function postbox._inbox_comparable(box postbox.inbox, alias text) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    return format(case postbox._inbox_type(box, 'payload') when 'json' then 'postbox._as_jsonb(%s.%I)' else '%s.%I' end,
        alias, coalesce((box).columns ->> 'payload', (box).columns ->> 'event_id'));
comment on function postbox._inbox_comparable(postbox.inbox, text) is 'Private: SQL for the payload';

create or replace function postbox._inbox_tier_of(box postbox.inbox, alias text) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select case when exists (select from postbox.inbox_tier t where t.inbox = (box).id) then format(
            '(select t.tier from postbox.inbox_tier t where t.inbox = %2$s and (t.lowest is null or %1$s >= t.lowest) and (t.highest is null or %1$s <= t.highest))',
            case when (box).columns ? 'priority' then format('coalesce(%s.%I, 0)', alias, (box).columns ->> 'priority') else '0' end, (box).id)
        else '0::smallint' end;
    end;
comment on function postbox._inbox_tier_of(postbox.inbox, text) is 'Private: SQL for the tier of a message';

create or replace function postbox._inbox_is_ordered(box postbox.inbox, alias text) returns text
    language sql immutable
    return format('(%1$s.%2$I is not null and %1$s.%3$I is not null)', alias, (box).columns ->> 'aggregate_id', (box).columns ->> 'sequence_num');
comment on function postbox._inbox_is_ordered(postbox.inbox, text) is 'Private: SQL for whether a message has a place in an order';

create or replace function postbox._arm_inbox(inbox_name text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box postbox.inbox;
    namespace name;
    arriving text;
    arrived text;
    tier text;
begin
    select * into strict box from postbox.inbox i where i.name = inbox_name;
    select n.nspname into namespace
        from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = box.relation;
    arriving := format('%I.%I', namespace, box.name || '_arriving');
    arrived := format('%I.%I', namespace, box.name || '_arrived');

    execute format($sql$
        create or replace function %1$s() returns trigger language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off as $body$
        declare
            id constant text := %2$s;
            differs boolean;
        begin
            if id is null or id = '' or octet_length(id) > 512 then
                raise exception using errcode = case when id is null then 'not_null_violation' else 'check_violation' end,
                    message = format('event_id of a message for inbox %%s has %%s bytes, must have 1 to 512', %3$L, coalesce(octet_length(id)::text, 'NULL')),
                    hint = 'The id says which messages are the same: give the one that the sender gave, or a hash of a longer one.';
            end if;
            %4$s
            %11$s
            select %5$s is distinct from %6$s into differs from %7$s r where r.%8$I = new.%8$I;
            if found then
                insert into postbox.inbox_log (inbox, at, what, event_type, messages, event_ids)
                    values (%9$s, clock_timestamp(), case when differs then 'conflict' else 'duplicate' end, %10$s, 1, case when differs then array[id] end);
            end if;
            return new;
        end $body$ $sql$,
        arriving,
        postbox._inbox_column(box.columns, 'event_id', 'new', 'text'),
        box.name,
        case when box.ordered_at is not null then format($sql$
            if (%1$s is null) <> (%2$s is null) then
                raise exception using errcode = 'not_null_violation',
                    message = format('message "%%s" for the ordered inbox %%s has %%s', id, %3$L,
                        case when %1$s is null then 'a sequence number and no aggregate' else 'an aggregate and no sequence number' end),
                    hint = 'Give both, or neither: then the message is handed out in no particular order.';
            end if;
            if octet_length(%1$s) > 1024 then
                raise exception using errcode = 'check_violation',
                    message = format('the aggregate of message "%%s" for the ordered inbox %%s has %%s bytes, must have 1024 at most', id, %3$L, octet_length(%1$s)),
                    hint = 'Give a hash of it.';
            end if;
            if %2$s >= 9223372036854775000 then
                raise exception using errcode = 'numeric_value_out_of_range',
                    message = format('sequence number %%s of message "%%s" for the ordered inbox %%s is too high', %2$s, id, %3$L),
                    hint = 'It must be below 9223372036854775000.';
            end if;$sql$,
            postbox._inbox_column(box.columns, 'aggregate_id', 'new', 'text'), postbox._inbox_column(box.columns, 'sequence_num', 'new', 'bigint'), box.name)
        else '' end,
        postbox._inbox_comparable(box, 'r'),
        postbox._inbox_comparable(box, 'new'),
        box.relation,
        box.columns ->> 'event_id',
        box.id,
        postbox._inbox_column(box.columns, 'event_type', 'new', 'text'),
        -- Before the table: a row that was found there may be removed before the unique key is looked at.
        case when box.dedup_window > box.retention then format($sql$
            perform from postbox.inbox_seen s where s.inbox = %1$s and s.event_id = id and s.until > clock_timestamp();
            if found then
                insert into postbox.inbox_log (inbox, at, what, event_type, messages) values (%1$s, clock_timestamp(), 'duplicate', %2$s, 1);
                return null;
            end if;$sql$, box.id, postbox._inbox_column(box.columns, 'event_type', 'new', 'text'))
        else '' end);
    execute format('comment on function %s() is %L', arriving, format('Trigger of inbox %s, made by Postbox', box.name));

    -- An ordered inbox sorts them into lanes later. In others a tier is found by the priority.
    tier := postbox._inbox_tier_of(box, 'a');
    if box.ordered_at is not null then
        tier := format('case when %1$s then -1 - %2$s else %2$s end', postbox._inbox_is_ordered(box, 'a'), tier);
    end if;
    execute format($sql$
        create or replace function %1$s() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $body$
        begin
            insert into postbox.inbox_batch (inbox, tier, ready_at, event_type, event_ids)
                select %2$s, m.tier, m.ready_at, m.event_type, array_agg(m.event_id order by m.n)
                from (
                    select a.*, (row_number() over (partition by a.tier, a.ready_at, a.event_type order by a.n) - 1) / 50 as batch
                    from (
                        select %3$s as event_id, %4$s as event_type, %5$s as tier,
                            case when %6$s > clock_timestamp() then %6$s else statement_timestamp() end as ready_at, row_number() over () as n
                        from arrivals a
                    ) a
                ) m
                group by m.tier, m.ready_at, m.event_type, m.batch
                order by min(m.n);
            return null;
        end $body$ $sql$,
        arrived, box.id,
        postbox._inbox_column(box.columns, 'event_id', 'a', 'text'),
        postbox._inbox_column(box.columns, 'event_type', 'a', 'text'),
        tier,
        -- An ordered message is sorted into its lane at once, and waits there.
        case when box.ordered_at is null then postbox._inbox_column(box.columns, 'visible_at', 'a', 'timestamptz')
            else format('case when not %s then %s end', postbox._inbox_is_ordered(box, 'a'),
                postbox._inbox_column(box.columns, 'visible_at', 'a', 'timestamptz')) end);
    execute format('comment on function %s() is %L', arrived, format('Trigger of inbox %s, made by Postbox', box.name));

    update postbox.inbox i set
        leased_sql = format(
            'select l.id, $2, %1$s, %2$s, %3$s, %4$s, %5$s, l.attempts
             from (
                 select e.id, b.attempts, b.tier, b.ready_at, e.n
                 from postbox.inbox_batch b cross join lateral unnest(b.event_ids) with ordinality as e(id, n)
                 where b.inbox = $1 and b.token = $2
                 union all
                 select p.event_id, p.attempts, p.tier, p.ready_at, 1 from postbox.inbox_lane p where p.inbox = $1 and p.token = $2
             ) l
             join %6$s r on r.%7$I = l.id::%8$s
             order by l.tier, l.ready_at, l.n',
            postbox._inbox_column(box.columns, 'event_type', 'r', 'text'), postbox._inbox_column(box.columns, 'aggregate_id', 'r', 'text'),
            postbox._inbox_column(box.columns, 'sequence_num', 'r', 'bigint'), postbox._inbox_json(box, 'payload'), postbox._inbox_json(box, 'headers'),
            box.relation, box.columns ->> 'event_id', postbox._inbox_type(box, 'event_id')),
        heads_sql = case when box.ordered_at is not null then format(
            'select k.key, h.id, h.type, h.tier, h.visible_at
             from unnest($2, $3) as k(key, next)
             cross join lateral (
                 select r.%1$I::text as id, %2$s as type, %3$s as tier, %4$s as visible_at
                 from %5$s r
                 where r.%6$I = k.key::%7$s and r.%8$I = k.next
                   and not exists (select from postbox.inbox_lane l where l.inbox = $1 and l.key = k.key and r.%1$I::text = any (l.displaced))
                 limit 1
             ) h',
            box.columns ->> 'event_id', postbox._inbox_column(box.columns, 'event_type', 'r', 'text'), postbox._inbox_tier_of(box, 'r'),
            postbox._inbox_column(box.columns, 'visible_at', 'r', 'timestamptz'), box.relation,
            box.columns ->> 'aggregate_id', postbox._inbox_type(box, 'aggregate_id'), box.columns ->> 'sequence_num') end,
        arrivals_sql = case when box.ordered_at is not null then format(
            'select u.id, r.%1$I::text, r.%2$I::bigint, %3$s, %4$s, %5$s
             from unnest($1) with ordinality as u(id, n) join %6$s r on r.%7$I = u.id::%8$s
             order by u.n',
            box.columns ->> 'aggregate_id', box.columns ->> 'sequence_num', postbox._inbox_column(box.columns, 'event_type', 'r', 'text'),
            postbox._inbox_tier_of(box, 'r'), postbox._inbox_column(box.columns, 'visible_at', 'r', 'timestamptz'), box.relation,
            box.columns ->> 'event_id', postbox._inbox_type(box, 'event_id')) end
        where i.id = box.id;

    execute format('create or replace trigger postbox_inbox_arriving before insert on %s for each row execute function %s()', box.relation, arriving);
    -- In style update the table itself says what is pending.
    if box.style = 'claim' then
        execute format('create or replace trigger postbox_inbox_arrived after insert on %s referencing new table as arrivals for each statement execute function %s()', box.relation, arrived);
    end if;
    perform postbox._arm_inbox_style(box);
end
$function$;
comment on function postbox._arm_inbox(text) is 'Private: makes the triggers of an inbox anew, as its settings are';

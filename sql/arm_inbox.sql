-- The triggers of an inbox. Their functions are made for each inbox, in its schema: a plan that names the table is kept for the session,
-- where dynamic SQL would be planned for every message.
--
-- Before each row: duplicates are noted, unless inbox_receive_batch does that for all, and what cannot be a message is refused. A duplicate is
-- left to the unique key, which decides it among concurrent ones too, unless retention has removed the first one. After each statement: the arrivals
-- are noted in batches. Both only insert, so a receiving transaction takes no lock but that of the unique key.
--
-- What is done for each row decides how fast messages come in. So the refusals are conditions of a trigger of their own, and the function
-- that looks for duplicates sets nothing but what its plan needs: its names are written out instead of looked for along a path.

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
create or replace function postbox._inbox_differs(box postbox.inbox, alias text, other text) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select format('(%1$s is null) operator(pg_catalog.<>) (%2$s is null) or coalesce(%1$s operator(pg_catalog.<>) %2$s, false)',
            format(f.how, alias, c.name), format(f.how, other, c.name))
        from (select coalesce((box).columns ->> 'payload', (box).columns ->> 'event_id') as name) c
        cross join lateral (
            select case postbox._inbox_type(box, 'payload') when 'json' then 'postbox._as_jsonb(%s.%I)' when 'jsonb' then '%s.%I'
                else '%s.%I::pg_catalog.text' end as how
        ) f;
    end;
comment on function postbox._inbox_differs(postbox.inbox, text, text) is 'Private: SQL for whether two rows have different payloads';

-- The tiers are written out: a receiver with an old snapshot would read old rows, but runs the function that is there now.
create or replace function postbox._inbox_tier_of(box postbox.inbox, alias text) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select coalesce('(case ' || string_agg(
                format('when %s then %s::smallint', coalesce(nullif(concat_ws(' and ', p.value || ' >= ' || t.lowest, p.value || ' <= ' || t.highest), ''), 'true'), t.tier),
                ' ' order by t.tier) || ' end)', '0::smallint')
        from postbox.inbox_tier t
        cross join (select case when (box).columns ? 'priority' then format('coalesce(%s.%I, 0)', alias, (box).columns ->> 'priority') else '0' end as value) p
        where t.inbox = (box).id;
    end;
comment on function postbox._inbox_tier_of(postbox.inbox, text) is 'Private: SQL for the tier of a message';

create or replace function postbox._inbox_is_ordered(box postbox.inbox, alias text) returns text
    language sql immutable
    return format('(%1$s.%2$I is not null and %1$s.%3$I is not null)', alias, (box).columns ->> 'aggregate_id', (box).columns ->> 'sequence_num');
comment on function postbox._inbox_is_ordered(postbox.inbox, text) is 'Private: SQL for whether a message has a place in an order';

-- What cannot be a message.
create or replace function postbox._arm_refusals(box postbox.inbox, function text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    id constant text := postbox._inbox_column(box.columns, 'event_id', 'new', 'text');
    aggregate_id constant text := postbox._inbox_column(box.columns, 'aggregate_id', 'new', 'text');
    sequence_num constant text := postbox._inbox_column(box.columns, 'sequence_num', 'new', 'bigint');
begin
    execute format('create or replace function %s() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as %L', function, format($body$
        begin
            if %1$s is null or octet_length(%1$s) not between 1 and 512 then
                raise exception using errcode = case when %1$s is null then 'not_null_violation' else 'check_violation' end,
                    message = format('event_id of a message for inbox %%s has %%s bytes, must have 1 to 512', %2$L, coalesce(octet_length(%1$s)::text, 'NULL')),
                    hint = 'The id says which messages are the same: give the one that the sender gave, or a hash of a longer one.';
            end if;
            if (%3$s is null) <> (%4$s is null) then
                raise exception using errcode = 'not_null_violation',
                    message = format('message "%%s" for the ordered inbox %%s has %%s', %1$s, %2$L,
                        case when %3$s is null then 'a sequence number and no aggregate' else 'an aggregate and no sequence number' end),
                    hint = 'Give both, or neither: then the message is handed out in no particular order.';
            end if;
            if octet_length(%3$s) > 1024 then
                raise exception using errcode = 'check_violation',
                    message = format('the aggregate of message "%%s" for the ordered inbox %%s has %%s bytes, must have 1024 at most', %1$s, %2$L, octet_length(%3$s)),
                    hint = 'Give a hash of it.';
            end if;
            raise exception using errcode = 'numeric_value_out_of_range',
                message = format('sequence number %%s of message "%%s" for the ordered inbox %%s is too high', %4$s, %1$s, %2$L),
                hint = 'It must be below 9223372036854775000.';
        end $body$,
        id, box.name, aggregate_id, sequence_num));
    execute format('comment on function %s() is %L', function, format('Trigger of inbox %s, made by Postbox', box.name));
    execute format('create or replace trigger postbox_inbox_refused before insert on %s for each row when (%s) execute function %s()', box.relation,
        format('%1$s is null or octet_length(%1$s) not between 1 and 512', id)
            || case when box.ordered_at is not null then format(' or (%1$s is null) <> (%2$s is null) or octet_length(%1$s) > 1024 or %2$s >= 9223372036854775000',
                aggregate_id, sequence_num) else '' end,
        function);
end
$function$;
comment on function postbox._arm_refusals(postbox.inbox, text) is 'Private: makes the trigger that refuses what cannot be a message';

-- Notes duplicates. One whose first message retention has removed is kept out here.
create or replace function postbox._arm_arriving(box postbox.inbox, function text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    id constant text := postbox._inbox_column(box.columns, 'event_id', 'new', 'pg_catalog.text');
    event_type constant text := postbox._inbox_column(box.columns, 'event_type', 'new', 'pg_catalog.text');
begin
    execute format('create or replace function %s() returns trigger language plpgsql set enable_seqscan = off as %L', function, format($body$
        declare
            differs pg_catalog.bool;
        begin
            %7$s
            -- Mostly it is not there: no more is asked than that.
            perform from %2$s r where r.%3$I operator(pg_catalog.=) new.%3$I;
            if found then
                select %1$s into differs from %2$s r where r.%3$I operator(pg_catalog.=) new.%3$I;
                insert into postbox.inbox_log (inbox, at, what, event_type, messages, event_ids)
                    values (%4$s, pg_catalog.clock_timestamp(), case when differs then 'conflict' else 'duplicate' end, %5$s, 1, case when differs then array[%6$s] end);
                perform pg_catalog.set_config('postbox.noted', '%4$s', true);
            end if;
            return new;
        end $body$,
        postbox._inbox_differs(box, 'r', 'new'), box.relation, box.columns ->> 'event_id', box.id, event_type, id,
        -- Before the table: a row that was found there may be removed before the unique key is looked at.
        case when box.dedup_window > box.retention then format($sql$
            perform from postbox.inbox_seen s
                where s.inbox operator(pg_catalog.=) %1$s and s.event_id operator(pg_catalog.=) %2$s and s.until operator(pg_catalog.>) pg_catalog.clock_timestamp();
            if found then
                -- Mostly it is gone; it is not if it was handed out again.
                select %4$s into differs from %5$s r where r.%6$I operator(pg_catalog.=) new.%6$I;
                insert into postbox.inbox_log (inbox, at, what, event_type, messages, event_ids)
                    values (%1$s, pg_catalog.clock_timestamp(), case when differs then 'conflict' else 'duplicate' end, %3$s, 1, case when differs then array[%2$s] end);
                perform pg_catalog.set_config('postbox.noted', '%1$s', true);
                return null;
            end if;$sql$, box.id, id, event_type, postbox._inbox_differs(box, 'r', 'new'), box.relation, box.columns ->> 'event_id')
        else '' end));
    execute format('comment on function %s() is %L', function, format('Trigger of inbox %s, made by Postbox', box.name));
    -- What inbox_receive_batch inserts together it looks up together.
    execute format('create or replace trigger postbox_inbox_arriving before insert on %s for each row when (pg_catalog.current_setting(''postbox.receiving'', true) is distinct from %L) execute function %s()',
        box.relation, box.id, function);
end
$function$;
comment on function postbox._arm_arriving(postbox.inbox, text) is 'Private: makes the trigger that notes duplicates';

-- Notes arrivals. Mostly they are of one type, are due and fit one batch; else they are sorted by what they are.
create or replace function postbox._arm_arrived(box postbox.inbox, function text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    -- In an inbox without order a tier is found by the priority. An ordered one sorts arrivals into lanes later: each lies there until it is due.
    ordered constant boolean := box.ordered_at is not null;
    tier constant text := case when ordered then format('case when %1$s then -1 - %2$s else %2$s end', postbox._inbox_is_ordered(box, 'a'), postbox._inbox_tier_of(box, 'a'))
        else postbox._inbox_tier_of(box, 'a') end;
    due constant text := case when ordered then format('case when not %s then %s end', postbox._inbox_is_ordered(box, 'a'), postbox._inbox_column(box.columns, 'visible_at', 'a', 'timestamptz'))
        else postbox._inbox_column(box.columns, 'visible_at', 'a', 'timestamptz') end;
begin
    execute format('create or replace function %s() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as %L', function, format($body$
        declare
            ids text[];
            types text[];
            tiers smallint[];
            last_due timestamptz;
            now constant timestamptz := clock_timestamp();
        begin
            select array_agg(a.event_id), array_agg(a.event_type), array_agg(a.tier), max(a.due) into ids, types, tiers, last_due
                from (select %2$s as event_id, %3$s as event_type, %4$s as tier, %5$s as due from arrivals a) a;
            if ids is null then
                return null;
            end if;
            if cardinality(ids) <= 50 and types = array_fill(types[1], array[cardinality(ids)]) and tiers = array_fill(tiers[1], array[cardinality(ids)])
                and (last_due is null or last_due <= now)
            then
                insert into postbox.inbox_batch (inbox, tier, ready_at, event_type, event_ids) values (%1$s, tiers[1], now, types[1], ids);
                return null;
            end if;
            insert into postbox.inbox_batch (inbox, tier, ready_at, event_type, event_ids)
                select %1$s, m.tier, m.ready_at, m.event_type, array_agg(m.event_id order by m.n)
                from (
                    select a.*, (row_number() over (partition by a.tier, a.ready_at, a.event_type order by a.n) - 1) / 50 as batch
                    from (
                        select %2$s as event_id, %3$s as event_type, %4$s as tier,
                            case when %5$s > now then %5$s else now end as ready_at, row_number() over () as n
                        from arrivals a
                    ) a
                ) m
                group by m.tier, m.ready_at, m.event_type, m.batch
                order by min(m.n);
            return null;
        end $body$,
        box.id, postbox._inbox_column(box.columns, 'event_id', 'a', 'text'), postbox._inbox_column(box.columns, 'event_type', 'a', 'text'), tier, due));
    execute format('comment on function %s() is %L', function, format('Trigger of inbox %s, made by Postbox', box.name));
    execute format('create or replace trigger postbox_inbox_arrived after insert on %s referencing new table as arrivals for each statement execute function %s()', box.relation, function);
end
$function$;
comment on function postbox._arm_arrived(postbox.inbox, text) is 'Private: makes the trigger that notes arrivals';

-- What a claim returns: the messages, in the order of their ids. A function, whose plan is kept, where a query would be planned for each claim.
create or replace function postbox._arm_claimed(box postbox.inbox, function text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    execute format('create or replace function %s(ids text[], tries int[], lease bigint)
            returns table (event_id text, token bigint, event_type text, aggregate_id text, sequence_num bigint, payload jsonb, headers jsonb, attempts int)
            language plpgsql stable as %L', function, format($body$
        begin
            return query
                select l.id, lease, %1$s, %2$s, %3$s, %4$s, %5$s, l.tries
                from unnest(ids, tries) with ordinality as l(id, tries, n)
                join %6$s r on r.%7$I operator(pg_catalog.=) l.id::%8$s
                order by l.n;
        end $body$,
        postbox._inbox_column(box.columns, 'event_type', 'r', 'text'), postbox._inbox_column(box.columns, 'aggregate_id', 'r', 'text'),
        postbox._inbox_column(box.columns, 'sequence_num', 'r', 'bigint'), postbox._inbox_json(box, 'payload'), postbox._inbox_json(box, 'headers'),
        box.relation, box.columns ->> 'event_id', postbox._inbox_type(box, 'event_id')));
    execute format('comment on function %s(text[], int[], bigint) is %L', function, format('What inbox_claim returns of inbox %s, made by Postbox', box.name));
end
$function$;
comment on function postbox._arm_claimed(postbox.inbox, text) is 'Private: makes the function that reads what was claimed';

-- What comes next in lanes: the messages of these aggregates with these numbers, where they are there, in the same order. Likewise a function.
-- Where two have one number, it is the one that was sorted: the other one is noted still, or displaced (each lane's as the text of an array). Note and
-- sorting change in one commit.
create or replace function postbox._arm_heads(box postbox.inbox, function text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    if box.ordered_at is null then
        if to_regprocedure(function || '(text[], bigint[], boolean[], text[])') is not null then
            execute format('drop function %s(text[], bigint[], boolean[], text[])', function);
        end if;
        return;
    end if;
    execute format('create or replace function %s(keys text[], nexts bigint[], are_there boolean[], displaced text[], out ids text[], out types text[], out tiers smallint[],
            out dues timestamptz[]) language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off as %L', function, format($body$
        begin
            select array_agg(h.id order by k.n), array_agg(h.type order by k.n), array_agg(h.tier order by k.n), array_agg(h.due order by k.n)
                into ids, types, tiers, dues
                from unnest(keys, nexts, are_there, displaced) with ordinality as k(key, next, is_there, displaced, n)
                left join lateral (
                    select r.%1$I::text as id, %2$s as type, %3$s as tier, %4$s as due
                    from %5$s r
                    where k.is_there and r.%6$I = k.key::%7$s and r.%8$I = k.next and not coalesce(r.%1$I::text = any (k.displaced::text[]), false)
                      and not (exists (select from %5$s o where o.%6$I = r.%6$I and o.%8$I = r.%8$I and o.%1$I <> r.%1$I)
                          and exists (select from postbox.inbox_batch b where b.inbox = %9$s and b.tier < 0 and b.token is null and b.crashes < 2
                              and r.%1$I::text = any (b.event_ids)))
                    limit 1
                ) h on true;
        end $body$,
        box.columns ->> 'event_id', postbox._inbox_column(box.columns, 'event_type', 'r', 'text'), postbox._inbox_tier_of(box, 'r'),
        postbox._inbox_column(box.columns, 'visible_at', 'r', 'timestamptz'), box.relation, box.columns ->> 'aggregate_id',
        postbox._inbox_type(box, 'aggregate_id'), box.columns ->> 'sequence_num', box.id));
    execute format('comment on function %s(text[], bigint[], boolean[], text[]) is %L', function, format('What comes next in the lanes of inbox %s, made by Postbox', box.name));
end
$function$;
comment on function postbox._arm_heads(postbox.inbox, text) is 'Private: makes the function that finds the next messages of lanes';

-- CREATE OR REPLACE leaves its owner what somebody had prepared, who could then run what he likes as whoever sends or reads. Who owns the schema of
-- Postbox could do that anyway.
create or replace function postbox._require_own_parts(box postbox.inbox) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    made record;
begin
    select string_agg(distinct format('"%s"', o.owner), ', ') as owners,
            string_agg(format('%s of "%s"', o.name, o.owner), ', ' order by o.name) as list,
            string_agg(format('ALTER %s OWNER TO %I', o.name, pg_get_userbyid(c.relowner)), '; ' order by o.name) as remedy
        into made
        from postbox._inbox_parts(box) o
        join pg_class c on c.oid = box.relation and c.relnamespace = o.namespace
        where not pg_has_role(o.owner_id, 'usage')
           or o.owner <> current_user and not pg_has_role(o.owner_id, c.relowner, 'member')
              and o.owner_id <> (select n.nspowner from pg_namespace n where n.nspname = 'postbox');
    if made.list is not null then
        raise exception using errcode = 'duplicate_function',
            message = format('parts of inbox "%s" belong to %s, not to who owns its table', box.name, made.owners),
            detail = format('Who owns a part can replace it, and nobody else: %s.', made.list),
            hint = case when box.armed_as is null then 'They were there before the inbox: drop them, or choose another name for it.'
                else format('Give them to the owner of the table and call this again, in one transaction: %s', made.remedy) end;
    end if;
end
$function$;
comment on function postbox._require_own_parts(postbox.inbox) is 'Private: refuses an inbox of which somebody else owns a part';

create or replace function postbox._arm_inbox(inbox_name text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box postbox.inbox;
    namespace name;
    taken regprocedure;
begin
    select * into strict box from postbox.inbox i where i.name = inbox_name;
    select n.nspname into namespace
        from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = box.relation;
    select o.function into taken
        from (
            select to_regprocedure(format('%I.%I(%s)', namespace, box.name || f.suffix, f.arguments)) as function
            from (values
                ('claim,update', '_refused', ''), ('claim,update', '_arriving', ''), ('update', '_updated', ''), ('claim', '_arrived', ''),
                ('claim', '_claimed', 'text[], int[], bigint'), ('claim', '_heads', 'text[], bigint[], boolean[], text[]'),
                ('claim,update', '_receive', 'text[], jsonb[], text[], text[], text[], bigint[], int[], jsonb[], timestamptz[], text[]')
            ) as f(styles, suffix, arguments)
            where box.style = any (string_to_array(f.styles, ','))
        ) o
        where o.function is not null and o.function not in (select f from postbox._inbox_functions(box) f)
        limit 1;
    if found then
        raise exception using errcode = 'duplicate_function',
            message = format('function %s exists already, and inbox "%s" is to have one of that name', taken, box.name),
            hint = 'Rename that function, or choose another name for the inbox.';
    end if;
    perform postbox._require_own_parts(box);
    perform postbox._arm_refusals(box, format('%I.%I', namespace, box.name || '_refused'));
    perform postbox._arm_arriving(box, format('%I.%I', namespace, box.name || '_arriving'));
    perform postbox._arm_receive(box, format('%I.%I', namespace, box.name || '_receive'));
    -- In style update the table itself says what is pending.
    if box.style = 'claim' then
        perform postbox._arm_arrived(box, format('%I.%I', namespace, box.name || '_arrived'));
        perform postbox._arm_claimed(box, format('%I.%I', namespace, box.name || '_claimed'));
        perform postbox._arm_heads(box, format('%I.%I', namespace, box.name || '_heads'));
    end if;

    update postbox.inbox i set
        tiered = exists (select from postbox.inbox_tier t where t.inbox = i.id),
        receive_many_sql = format('select %I.%I($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)', namespace, box.name || '_receive'),
        claimed_sql = format('select * from %I.%I($1, $2, $3)', namespace, box.name || '_claimed'),
        heads_sql = case when box.ordered_at is not null then format('select * from %I.%I($1, $2, $3, $4)', namespace, box.name || '_heads') end,
        arrivals_sql = case when box.ordered_at is not null then format(
            'select u.id, r.%1$I::text, r.%2$I::bigint, %3$s, %4$s, %5$s
             from unnest($1) with ordinality as u(id, n) join %6$s r on r.%7$I = u.id::%8$s
             order by u.n',
            box.columns ->> 'aggregate_id', box.columns ->> 'sequence_num', postbox._inbox_column(box.columns, 'event_type', 'r', 'text'),
            postbox._inbox_tier_of(box, 'r'), postbox._inbox_column(box.columns, 'visible_at', 'r', 'timestamptz'), box.relation,
            box.columns ->> 'event_id', postbox._inbox_type(box, 'event_id')) end
        where i.id = box.id;

    perform postbox._arm_inbox_style(box);
    perform postbox._make_inbox_views(box.name);
    -- Again: what we have just written nobody changes until the commit.
    perform postbox._require_own_parts(box);
end
$function$;
comment on function postbox._arm_inbox(text) is 'Private: makes the triggers of an inbox anew, as its settings are';

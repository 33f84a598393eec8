-- What the two styles of an inbox allow. claim: workers call inbox_claim and the verbs, and a message never changes. update: workers lock rows of
-- the table and write into it how it went; a trigger notes it.

-- Raises: an inbox's trigger calls it for a row that sets or changes what must not be set or changed.
create or replace function postbox._refuse_change() returns trigger
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    inbox constant text := tg_argv[0];
    style constant text := tg_argv[1];
begin
    if tg_op = 'INSERT' then
        raise exception using errcode = 'check_violation',
            message = format('a message for inbox "%s" is inserted as one that was tried already', inbox),
            hint = case style when 'claim' then 'Leave processed_at, error and retry_count out: the inbox keeps that elsewhere, messages_<inbox> shows it.'
                else 'Leave error and retry_count out.' end;
    end if;
    raise exception using errcode = 'object_not_in_prerequisite_state',
        message = format('a message of inbox "%s" cannot be changed so', inbox),
        hint = case style when 'claim' then 'event_id, aggregate_id, sequence_num, priority, visible_at, processed_at, error and retry_count stay as they are: inbox_complete and inbox_fail say how it went, inbox_fail with retry_after also when it comes again.'
            else 'event_id stays as it is.' end;
end
$function$;
comment on function postbox._refuse_change() is 'Private: trigger that refuses rows';

-- SQL for a condition on the columns of these roles that the inbox has, NULL if there are none.
create or replace function postbox._inbox_condition(box postbox.inbox, roles text[], template text) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select string_agg(replace(template, '%I', quote_ident((box).columns ->> r.role)), ' or ' order by r.n)
        from unnest(roles) with ordinality as r(role, n)
        where (box).columns ? r.role;
    end;
comment on function postbox._inbox_condition(postbox.inbox, text[], text) is 'Private: a condition on columns of an inbox';

-- All roles, in the order in which the trigger postbox_inbox_changing lists their columns: it follows columns that are renamed, and
-- PostgreSQL does not let them be dropped or get another type while it is there.
create or replace function postbox._inbox_roles(columns jsonb) returns table (role text, n bigint)
    language sql immutable strict parallel safe
    set search_path = pg_catalog, pg_temp
    begin atomic
        select r.role, row_number() over (order by r.ordinality)
        from unnest('{event_id,event_type,source,aggregate_id,sequence_num,priority,payload,headers,received_at,visible_at,trace_id,processed_at,error,retry_count}'::text[])
            with ordinality as r(role, ordinality)
        where _inbox_roles.columns ? r.role;
    end;
comment on function postbox._inbox_roles(jsonb) is 'Private: the roles that have columns, in order';

-- The table says what is pending, and a trigger notes what workers write into it.
create or replace function postbox._arm_inbox_updates(box postbox.inbox) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    namespace name;
    updated text;
    key constant text := format('%I', box.columns ->> 'event_id');
begin
    select n.nspname into namespace
        from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = box.relation;
    if not exists (select from pg_index x where x.indrelid = box.relation and x.indisvalid and x.indexprs is null
            and pg_get_expr(x.indpred, x.indrelid) = format('(%I IS NULL)', box.columns ->> 'processed_at')) then
        execute format('create index %I on %s (%I) where %I is null', box.name || '_pending', box.relation,
            coalesce(box.columns ->> 'received_at', box.columns ->> 'event_id'), box.columns ->> 'processed_at');
        execute format('comment on index %I.%I is %L', namespace, box.name || '_pending', format('Of inbox %s, made by Postbox', box.name));
    end if;
    -- The message that has waited longest is found along it, however many are delayed. Times without a zone are no order for an index.
    if postbox._inbox_type(box, 'visible_at') = 'timestamp with time zone'
        and coalesce(postbox._inbox_type(box, 'received_at'), 'timestamp with time zone') = 'timestamp with time zone'
        and not exists (select from pg_index x where x.indrelid = box.relation and x.indisvalid and x.indexprs is not null
            and obj_description(x.indexrelid, 'pg_class') = format('Of inbox %s, made by Postbox', box.name))
    then
        execute format('create index %I on %s (coalesce(%I, %s)) where %I is null', box.name || '_due', box.relation, box.columns ->> 'visible_at',
            coalesce(quote_ident(box.columns ->> 'received_at'), 'null::timestamptz'), box.columns ->> 'processed_at');
        execute format('comment on index %I.%I is %L', namespace, box.name || '_due', format('Of inbox %s, made by Postbox', box.name));
    end if;
    updated := format('%I.%I', namespace, box.name || '_updated');
    execute format('create or replace function %s() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as %L', updated, format($body$
        begin
            insert into postbox.inbox_log (inbox, at, what, event_type, messages, seconds, event_ids)
                select %1$s, clock_timestamp(), o.what, o.event_type, count(*),
                    case o.what when 'processed' then count(*) * extract(epoch from clock_timestamp() - now()) else 0 end,
                    case when o.what <> 'failed' then array_agg(o.event_id) end
                from (
                    select n.%2$s::text as event_id, %3$s as event_type,
                        case when o.%4$I is null and n.%4$I is not null then 'processed'
                            when n.%4$I is null and %5$s > %7$s and %6$s <= %7$s then 'dead'
                            when n.%4$I is null and %5$s > %6$s then 'failed' end as what
                    from olds o join news n on n.%2$s = o.%2$s
                ) o
                where o.what is not null
                group by o.what, o.event_type;
            %8$s
            return null;
        end $body$,
        box.id, key, postbox._inbox_column(box.columns, 'event_type', 'n', 'text'), box.columns ->> 'processed_at',
        format('coalesce(%s, 0)', postbox._inbox_column(box.columns, 'retry_count', 'n', 'int')),
        format('coalesce(%s, 0)', postbox._inbox_column(box.columns, 'retry_count', 'o', 'int')),
        box.max_retries,
        case when box.columns ? 'retry_count' then format($sql$
            insert into postbox.inbox_dead as d (inbox, event_id, event_type, aggregate_id, sequence_num, tier, why, error, attempts, first_failed_at, last_failed_at)
                select %1$s, n.%2$s::text, %3$s, %4$s, %5$s, 0, 'failed', %6$s, n.%7$I, clock_timestamp(), clock_timestamp()
                from news n where n.%8$I is null and n.%7$I > %9$s
                on conflict on constraint inbox_dead_pkey do update set error = excluded.error, attempts = excluded.attempts, last_failed_at = excluded.last_failed_at;
            delete from postbox.inbox_dead d using news n join olds o on o.%2$s = n.%2$s
                where d.inbox = %1$s and d.event_id = n.%2$s::text and o.%7$I > %9$s and (n.%8$I is not null or coalesce(n.%7$I, 0) <= %9$s);$sql$,
            box.id, key, postbox._inbox_column(box.columns, 'event_type', 'n', 'text'), postbox._inbox_column(box.columns, 'aggregate_id', 'n', 'text'),
            postbox._inbox_column(box.columns, 'sequence_num', 'n', 'bigint'), postbox._inbox_column(box.columns, 'error', 'n', 'text'),
            box.columns ->> 'retry_count', box.columns ->> 'processed_at', box.max_retries)
        else '' end));
    execute format('comment on function %s() is %L', updated, format('Trigger of inbox %s, made by Postbox', box.name));
    execute format('create or replace trigger postbox_inbox_updated after update on %s referencing old table as olds new table as news for each statement execute function %s()',
        box.relation, updated);
end
$function$;
comment on function postbox._arm_inbox_updates(postbox.inbox) is 'Private: makes the index and the trigger of an inbox of style update';

create or replace function postbox._arm_inbox_style(box postbox.inbox) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    names constant text := format('%L, %L', box.name, box.style);
    set_at_insert constant text := concat_ws(' or ',
        postbox._inbox_condition(box, case box.style when 'claim' then '{processed_at,error}' else '{error}' end::text[], 'new.%I is not null'),
        postbox._inbox_condition(box, '{retry_count}', 'new.%I <> 0'));
    changed constant text := postbox._inbox_condition(box,
        case box.style when 'claim' then '{event_id,aggregate_id,sequence_num,priority,visible_at,processed_at,error,retry_count}' else '{event_id}' end::text[],
        'old.%I is distinct from new.%I');
    ours record;
begin
    update postbox.inbox i set armed_as = box.relation::text, receive_sql = r.receive_sql, differs_sql = r.differs_sql
        from postbox._receive_sql(box) r where i.id = box.id;
    if set_at_insert <> '' then
        execute format('create or replace trigger postbox_inbox_inserting before insert on %s for each row when (%s) execute function postbox._refuse_change(%s)',
            box.relation, set_at_insert, names);
    end if;
    execute format('create or replace trigger postbox_inbox_changing before update of %s on %s for each row when (%s) execute function postbox._refuse_change(%s)',
        (select string_agg(format('%I', box.columns ->> r.role), ', ' order by r.n) from postbox._inbox_roles(box.columns) r), box.relation, changed, names);
    if box.style = 'update' then
        perform postbox._arm_inbox_updates(box);
    end if;
    -- DROP EXTENSION takes them along: without the tables of Postbox every INSERT would fail.
    if exists (select from pg_extension e where e.extname = 'postbox') then
        for ours in select f as function from postbox._inbox_functions(box) f loop
            execute format('alter function %s depends on extension postbox', ours.function);
        end loop;
        for ours in select t.tgname from pg_trigger t where t.tgrelid = box.relation and t.tgname ~ '^postbox_inbox_' loop
            execute format('alter trigger %I on %s depends on extension postbox', ours.tgname, box.relation);
        end loop;
    end if;
end
$function$;
comment on function postbox._arm_inbox_style(postbox.inbox) is 'Private: makes the triggers that the style of an inbox needs';

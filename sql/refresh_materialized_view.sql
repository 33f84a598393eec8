-- A materialized view has no triggers. What a refresh changed is found by comparing its rows before and after, in the transaction of the refresh.

create or replace function postbox._refresh_materialized_view(
    target regclass, view_name text, outbox text, found_outbox regclass, key text[], readable boolean
) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    schema name;
    name name;
    kind "char";
    was_populated boolean;
    events regclass;
    of_row text;
    changed bigint;
begin
    select n.nspname, c.relname, c.relkind into schema, name, kind from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = target;
    if not found then
        raise exception using errcode = 'undefined_table',
            message = format('materialized view %s does not exist', coalesce('"' || view_name || '"', 'NULL')),
            hint = 'Qualify a name whose schema is not in search_path.';
    end if;
    if kind <> 'm' then
        raise exception using errcode = 'wrong_object_type',
            message = format('"%s.%s" is not a materialized view', schema, name),
            hint = 'The changes of a table are captured by postbox.enable_outbox.';
    end if;
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception using errcode = 'active_sql_transaction',
            message = format('postbox.refresh_materialized_view in a transaction that is %s', current_setting('transaction_isolation')),
            hint = 'It compares what is there before and after: use READ COMMITTED.';
    end if;
    perform postbox._captured_columns(target, schema || '.' || name, 'key', key);
    if found_outbox is not null then
        perform postbox._require_taking(found_outbox, coalesce(outbox, found_outbox::text));
        perform postbox._require_same_owner(target, outbox, found_outbox);
    end if;
    events := coalesce(found_outbox, postbox._outbox_for(target, outbox, null));

    -- One refresh at a time: the next one starts from what this one leaves.
    perform pg_advisory_xact_lock(postbox._lock_key(target));
    select c.relispopulated into was_populated from pg_class c where c.oid = target;
    execute format('create temporary table postbox_before on commit drop as select to_jsonb(x.*) as row from %s x%s', target,
        case when was_populated then '' else ' with no data' end);
    execute format('refresh materialized view %s%s', case when readable then 'concurrently ' else '' end, target);
    of_row := case when key is null then null when cardinality(key) = 1 then format('(r.row ->> %L)', key[1])
        else (select format('jsonb_build_array(%s)::text', string_agg(format('r.row -> %L', k.col), ', ' order by k.n)) from unnest(key) with ordinality as k(col, n)) end;
    if key is not null and not was_populated then
        -- That all is new is said once.
        execute format('insert into %s (type, key, headers, payload) values ($1, $2, jsonb_build_object(''op'', ''refresh'', ''table'', $2, ''statement'', pg_current_xact_id()::text), $3)', events)
            using name || '.refreshed', schema || '.' || name, '{"full_refresh": true, "inserted": [], "deleted": []}'::jsonb;
    end if;
    execute format($sql$
        with inserted as (select to_jsonb(x.*) as row from %1$s x except all select b.row from pg_temp.postbox_before b),
            deleted as (select b.row from pg_temp.postbox_before b except all select to_jsonb(x.*) from %1$s x),
            written as (
                insert into %2$s (type, key, headers, payload)
                    select %3$L, %4$s, jsonb_build_object('op', 'refresh', 'table', %5$L, 'statement', pg_current_xact_id()::text), %6$L::jsonb || jsonb_build_object(
                        'inserted', coalesce(jsonb_agg(r.row) filter (where r.inserted), '[]'), 'deleted', coalesce(jsonb_agg(r.row) filter (where not r.inserted), '[]'))
                    from (select i.row, true as inserted from inserted i union all select d.row, false from deleted d) r
                    %7$s
                    having count(*) > 0 or not %8$L::boolean)
        select (select count(*) from inserted) + (select count(*) from deleted)$sql$,
        target, events, name || '.refreshed', coalesce(of_row, quote_literal(schema || '.' || name)), schema || '.' || name,
        case when was_populated or key is not null then '{}' else '{"full_refresh": true}' end, case when key is not null then 'group by ' || of_row else '' end,
        was_populated or key is not null)
        into changed;
    drop table pg_temp.postbox_before;
    return changed;
end
$function$;
comment on function postbox._refresh_materialized_view(regclass, text, text, regclass, text[], boolean) is 'Private: refresh_materialized_view with the names looked up';

create or replace function postbox.refresh_materialized_view(
    view_name    text,
    outbox       text    default null,
    key          text[]  default null,
    concurrently boolean default false
) returns bigint
    language sql volatile
    begin atomic
        select postbox._refresh_materialized_view(to_regclass(view_name), view_name, outbox,
            -- Not by to_regclass, which would cut off what is too long, and find the table itself.
            case when outbox is not null then to_regclass(outbox) else (
                select o.oid::regclass from pg_class c join pg_class o on o.relnamespace = c.relnamespace and o.relname = c.relname || '_outbox'
                where c.oid = to_regclass(view_name)) end,
            key, coalesce(refresh_materialized_view.concurrently, false));
    end;
comment on function postbox.refresh_materialized_view(text, text, text[], boolean) is
    'Refreshes a materialized view and publishes what that changed, in one transaction. Returns how many rows differ; without any there is no event';

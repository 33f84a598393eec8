-- A materialized view has no triggers. What a refresh changed is found by comparing its rows before and after, in the transaction of the refresh.

-- Runs a statement that prints rows, as capture does. What REFRESH runs is not printed: its query goes by the settings of the session.
create or replace function postbox._print_rows(statement text) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
    set datestyle = iso
    set intervalstyle = iso_8601
    set bytea_output = hex
    set extra_float_digits = 1
as $function$
declare
    printed bigint;
begin
    execute statement;
    get diagnostics printed = row_count;
    return printed;
end
$function$;
comment on function postbox._print_rows(text) is 'Private: runs a statement by which rows become JSON, the same in every session';

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
    headers jsonb;
    is_new boolean;
    most_rows bigint;
    most_bytes bigint;
    is_claim boolean := false;
    lines constant text := 'select jsonb_build_object(case when d.inserted then ''inserted'' else ''deleted'' end, d.row)::text from pg_temp.postbox_delta d order by d.inserted';
    line refcursor;
    changed bigint;
    bytes bigint;
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
    perform postbox._require_read_committed('postbox.refresh_materialized_view');
    perform postbox._captured_columns(target, schema || '.' || name, 'key', key);
    if found_outbox is not null then
        perform postbox._require_taking(found_outbox, coalesce(outbox, found_outbox::text));
        perform postbox._require_same_owner(target, outbox, found_outbox);
    end if;
    events := coalesce(found_outbox, postbox._outbox_for(target, outbox, null));

    -- One refresh at a time: the next one starts from what this one leaves.
    perform pg_advisory_xact_lock(postbox._lock_key(target));
    select c.relispopulated into was_populated from pg_class c where c.oid = target;
    perform postbox._print_rows(format('create temporary table postbox_before on commit drop as select to_jsonb(x.*) as row from %s x%s', target,
        case when was_populated then '' else ' with no data' end));
    execute format('refresh materialized view %s%s', case when readable then 'concurrently ' else '' end, target);
    of_row := case when key is null then null when cardinality(key) = 1 then format('(r.row ->> %L)', key[1])
        else (select format('jsonb_build_array(%s)::text', string_agg(format('r.row -> %L', k.col), ', ' order by k.n)) from unnest(key) with ordinality as k(col, n)) end;
    changed := postbox._print_rows(format($sql$
        create temporary table postbox_delta on commit drop as
            select i.row, true as inserted from (select to_jsonb(x.*) as row from %1$s x except all select b.row from pg_temp.postbox_before b) i
            union all
            select d.row, false from (select b.row from pg_temp.postbox_before b except all select to_jsonb(x.*) from %1$s x) d$sql$, target));
    headers := jsonb_build_object('op', 'refresh', 'table', schema || '.' || name, 'statement', pg_current_xact_id()::text);
    is_new := not was_populated;
    if key is null then
        -- As capture has it: the bytes are those of the lines.
        select k.inline_threshold_rows, k.inline_threshold_bytes into most_rows, most_bytes from postbox._claim_check k where k.outbox = events;
        if found then
            is_claim := changed > most_rows;
            if not is_claim then
                execute format('select coalesce(sum(octet_length(l.line) + 1), 0) > $1 from (%s) l(line)', lines) into is_claim using most_bytes;
            end if;
        end if;
    end if;
    if is_new and (key is not null or is_claim) then
        -- That all is new is said once.
        execute format('insert into %s (type, key, headers, payload) values ($1, $2, $3, $4)', events)
            using name || '.refreshed', schema || '.' || name, headers, '{"full_refresh": true, "inserted": [], "deleted": []}'::jsonb;
        is_new := false;
    end if;
    if is_claim then
        open line no scroll for execute lines;
        perform postbox._publish_rows(events, name || '.refreshed', line, schema || '.' || name, headers, null, 'pg_catalog, pg_temp');
        close line;
    else
        begin
            execute postbox._captured_written(format($sql$
                insert into %1$s (type, key, headers, payload)
                    select $1, %2$s, $2, $3 || jsonb_build_object(
                        'inserted', coalesce(jsonb_agg(r.row) filter (where r.inserted), '[]'), 'deleted', coalesce(jsonb_agg(r.row) filter (where not r.inserted), '[]'))
                    from pg_temp.postbox_delta r
                    %3$s
                    having count(*) > 0 or $4$sql$,
                events, coalesce(of_row, quote_literal(schema || '.' || name)), case when key is not null then 'group by ' || of_row else '' end))
                into bytes
                using name || '.refreshed', headers, case when is_new then '{"full_refresh": true}' else '{}' end::jsonb, is_new;
        exception when program_limit_exceeded or out_of_memory then
            bytes := 1::bigint << 62;
        end;
        if bytes > 268369920 then
            raise exception using errcode = 'program_limit_exceeded',
                message = format('what a refresh changed in materialized view "%s.%s" is too large for an event', schema, name),
                detail = 'An event has at most 256 MiB.',
                hint = case when key is null
                    then format('Let the outbox have a claim check: SELECT postbox.enable_claim_check(%L); or give a key, for an event of each.', events::text)
                    else 'Choose a key that fewer rows share; or leave it out, and let the outbox have a claim check (postbox.enable_claim_check).' end;
        end if;
    end if;
    drop table pg_temp.postbox_delta;
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

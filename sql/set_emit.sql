-- Whether an outbox takes events that are written to the log and to no table: a word in its marker.

create or replace function postbox._set_emit(outbox regclass, name text, enabled boolean) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    marker record;
    readers text;
    arguments text[];
begin
    select m.* into marker from postbox._marker m where m.outbox = _set_emit.outbox;
    if not found then
        raise exception using
            errcode = case when outbox is null then 'undefined_table' else 'wrong_object_type' end,
            message = case when outbox is null then format('outbox %s does not exist', coalesce('"' || name || '"', 'NULL'))
                else format('"%s" is not an outbox', name) end,
            hint = 'postbox.outbox_status() lists the outboxes. Qualify a name whose schema is not in search_path.';
    end if;
    if enabled is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = format('whether outbox "%s" takes emitted events is NULL', name),
            hint = 'true or false.';
    end if;
    if enabled = ('emit=on' = any (marker.arguments)) then
        return false;
    end if;
    if enabled then
        -- Nobody starts one meanwhile.
        perform pg_advisory_xact_lock(postbox._lock_key(outbox));
        select string_agg(b.group_name, ', ' order by b.group_name) into readers from postbox.backfill b where b.outbox = _set_emit.outbox and not b.finished;
        if readers is not null then
            raise exception using errcode = 'object_in_use',
                message = format('outbox "%s" cannot take emitted events yet: consumer group %s is being given what it stores', name, readers),
                detail = 'Stored events are not delivered from an outbox that has events which are stored nowhere.',
                hint = format('Let a member run until it has caught up, or drop the group; then SELECT postbox.set_emit(%L, true).', name);
        end if;
    end if;
    arguments := array_remove(marker.arguments, 'emit=on') || case when enabled then array['emit=on'] else '{}' end;
    -- In one transaction: readers of the log see either.
    execute format('drop trigger postbox_outbox on %I.%I', marker.schema, marker.name);
    execute format(
        'create trigger postbox_outbox before update on %I.%I for each row when (false)
         execute function pg_catalog.suppress_redundant_updates_trigger(%s)',
        marker.schema, marker.name,
        (select string_agg(quote_literal(argument), ', ' order by n) from unnest(arguments) with ordinality as a(argument, n)));
    return true;
end
$function$;
comment on function postbox._set_emit(regclass, text, boolean) is 'Private: set_emit with the outbox looked up';

create or replace function postbox.set_emit(outbox text, enabled boolean) returns boolean
    language sql volatile
    begin atomic
        select postbox._set_emit(to_regclass(outbox), outbox, enabled);
    end;
comment on function postbox.set_emit(text, boolean) is
    'Whether an outbox takes events that are in the log only (postbox.emit); while it does, groups of it cannot start at earliest, seek backwards or recover. False: nothing to change';

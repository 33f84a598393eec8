-- Whether an outbox takes events that are written to the log and to no table: a word in its marker.

create or replace function postbox._set_emit(outbox regclass, name text, enabled boolean) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    -- Nobody starts to deliver what is stored meanwhile.
    marker constant postbox._marker := postbox._locked_outbox(outbox, name);
    readers text;
begin
    if enabled is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = format('whether outbox "%s" takes emitted events is NULL', name),
            hint = 'true or false.';
    end if;
    if enabled = ('emit=on' = any (marker.arguments)) then
        return false;
    end if;
    if enabled then
        select string_agg(b.group_name, ', ' order by b.group_name) into readers from postbox.backfill b where b.outbox = _set_emit.outbox and not b.finished;
        if readers is not null then
            raise exception using errcode = 'object_in_use',
                message = format('outbox "%s" cannot take emitted events yet: consumer group %s is being given what it stores', name, readers),
                detail = 'Stored events are not delivered from an outbox that has events which are stored nowhere.',
                hint = format('Let a member run until it has caught up, or drop the group; then SELECT postbox.set_emit(%L, true).', name);
        end if;
    end if;
    perform postbox._write_marker(marker, array_remove(marker.arguments, 'emit=on') || case when enabled then array['emit=on'] else '{}' end);
    perform postbox._note_emit(outbox, enabled);
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

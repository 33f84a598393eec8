-- Ends the capture of a table; what was captured stays in the outbox.

create or replace function postbox._disable_outbox(target regclass, table_name text, if_exists boolean, with_outbox boolean) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    outbox record;
    one record;
    captured record;
begin
    if target is null and not if_exists then
        raise exception using errcode = 'undefined_table',
            message = format('table %s does not exist', coalesce('"' || table_name || '"', 'NULL')),
            hint = 'The view postbox.captures lists the tables that are captured.';
    end if;
    if target is not null then
        execute format('lock table %s in share row exclusive mode', target);
    end if;
    if not exists (select from pg_trigger t where t.tgrelid = target and t.tgname ~ '^postbox_capture_') then
        if if_exists then
            return false;
        end if;
        raise exception using errcode = 'undefined_object',
            message = format('table "%s" is not captured', table_name),
            hint = 'The view postbox.captures lists the tables that are.';
    end if;
    select m.schema, m.name into outbox from postbox.captures c join postbox._marker m on m.outbox = c.outbox_relation where c.relation = target;
    for one in
        select t.tgname as name, n.nspname as schema, p.proname as function
        from pg_trigger t join pg_proc p on p.oid = t.tgfoid join pg_namespace n on n.oid = p.pronamespace
        where t.tgrelid = target and t.tgname ~ '^postbox_capture_'
    loop
        execute format('drop trigger %I on %s', one.name, target);
        if one.function ~ '^postbox_capture_' then
            captured := one;
        end if;
    end loop;
    if captured is not null then
        execute format('drop function %1$I.%2$I(), %1$I.%3$I(), %1$I.%4$I(text)', captured.schema, captured.function,
            regexp_replace(captured.function, '^postbox_capture_', 'postbox_begin_'), regexp_replace(captured.function, '^postbox_capture_', 'postbox_columns_'));
    end if;
    if with_outbox and outbox.name is not null then
        perform postbox.drop_outbox(outbox.name, outbox.schema);
    end if;
    return true;
end
$function$;
comment on function postbox._disable_outbox(regclass, text, boolean, boolean) is 'Private: disable_outbox with the name looked up';

create or replace function postbox.disable_outbox(table_name text, if_exists boolean default false, with_outbox boolean default false) returns boolean
    language sql volatile
    begin atomic
        select postbox._disable_outbox(to_regclass(table_name), table_name, coalesce(if_exists, false), coalesce(with_outbox, false));
    end;
comment on function postbox.disable_outbox(text, boolean, boolean) is
    'Ends the capture of a table. The outbox stays with its events, unless with_outbox. False: the table is not captured, which is an error unless if_exists';

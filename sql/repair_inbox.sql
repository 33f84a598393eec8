-- After the table of an inbox, or a column of it, was renamed, or the table was moved into another schema: its triggers go by names.

create or replace function postbox.repair_inbox(name text) returns regclass
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box postbox.inbox;
    present jsonb;
    old regprocedure;
    moved record;
begin
    select * into box from postbox.inbox i where i.name = repair_inbox.name;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('inbox %s does not exist', coalesce('"' || name || '"', 'NULL')),
            hint = 'postbox.inbox_status() lists the inboxes.';
    end if;
    if not exists (select from pg_class c where c.oid = box.relation) then
        raise exception using errcode = 'undefined_table',
            message = format('the table of inbox "%s" was dropped', box.name),
            hint = format('There is nothing to repair: call postbox.drop_inbox(%L).', box.name);
    end if;
    execute format('lock table %s in access exclusive mode', box.relation);
    select jsonb_object_agg(r.role, a.attname) into present
        from pg_trigger t
        cross join lateral unnest(t.tgattr) with ordinality as u(attnum, n)
        join postbox._inbox_roles(box.columns) r on r.n = u.n
        join pg_attribute a on a.attrelid = t.tgrelid and a.attnum = u.attnum
        where t.tgrelid = box.relation and t.tgname = 'postbox_inbox_changing';
    if (select count(*) from jsonb_object_keys(present)) is distinct from (select count(*) from jsonb_object_keys(box.columns)) then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('trigger postbox_inbox_changing of %s is gone, which knew the columns of inbox "%s"', box.relation, box.name),
            hint = 'Columns that were dropped with it cannot be found again: postbox.drop_inbox, then postbox.enable_inbox_tracking with columns that are there.';
    end if;
    update postbox.inbox i set columns = present where i.id = box.id;
    for moved in
        select v::text as name, c.relname, n.nspname, postbox._inbox_view(box, c.relname) as new_name
            from postbox._inbox_views(box) v join pg_class c on c.oid = v join pg_class t on t.oid = box.relation join pg_namespace n on n.oid = t.relnamespace
            where c.relnamespace <> t.relnamespace
    loop
        if to_regclass(moved.new_name) is not null then
            raise exception using errcode = 'duplicate_table',
                message = format('relation "%s", which is to be a view of inbox "%s", exists already', moved.new_name, box.name),
                hint = 'Rename that relation.';
        end if;
        execute format('alter view %s set schema %I', moved.name, moved.nspname);
    end loop;
    perform postbox._arm_inbox(name);
    for old in
        select f from postbox._inbox_functions(box) f join pg_proc p on p.oid = f join pg_class c on c.oid = box.relation
            where p.pronamespace <> c.relnamespace
    loop
        execute format('drop function %s', old);
    end loop;
    return box.relation;
end
$function$;
comment on function postbox.repair_inbox(text) is 'Makes the triggers of an inbox anew after its table or a column of it was renamed or moved';

create or replace function postbox.drop_consumer_group(name text, force boolean default false) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    slot name;
    reader int;
    reader_name text;
    letters bigint;
begin
    select g.slot_name into slot from postbox.consumer_group g where g.name = drop_consumer_group.name;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('consumer group %s does not exist', coalesce('"' || name || '"', 'NULL')),
            hint = 'The view postbox.consumer_groups lists the groups.';
    end if;
    -- A copy of this database carries the same rows; the slot they name is not the copy's to drop.
    select s.active_pid into reader
        from pg_replication_slots s
        where s.slot_name = slot and s.database = current_database();
    if not found then
        slot := null;
    elsif reader is not null then
        select coalesce(nullif(a.application_name, ''), 'unnamed') into reader_name from pg_stat_activity a where a.pid = reader;
        raise exception using errcode = 'object_in_use',
            message = format('consumer group "%s" is in use by process %s (application %s)', name, reader, coalesce(reader_name, 'unknown')),
            hint = format('Stop that consumer, or cut it off with pg_terminate_backend(%s), and drop the group again.', reader);
    end if;
    -- A member that gives out stored events, or waits for a link, does not read the slot and has the group all the same.
    if not pg_try_advisory_xact_lock(postbox._member_lock(name)) then
        select a.pid into reader from postbox._active_member a where a.group_name = drop_consumer_group.name limit 1;
        raise exception using errcode = 'object_in_use',
            message = format('consumer group "%s" is in use by process %s, its active member', name, coalesce(reader::text, 'unknown')),
            hint = 'Stop that consumer, or pause the group, and drop the group again.';
    end if;
    select count(*) into letters from postbox.dead_letter d where d.group_name = drop_consumer_group.name;
    if letters > 0 and force is not true then
        raise exception using errcode = 'dependent_objects_still_exist',
            message = format('consumer group "%s" has %s dead %s, which were never delivered', name, letters, case letters when 1 then 'letter' else 'letters' end),
            hint = 'Redrive or discard them; or drop them with the group: force => true, postbox group drop --force.';
    end if;
    perform postbox._durable();
    delete from postbox.consumer_group g where g.name = drop_consumer_group.name;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('consumer group "%s" was dropped by another session just now', name),
            hint = 'The view postbox.consumer_groups lists the groups that are left.';
    end if;
    insert into postbox.audit (action, subject, detail) values ('drop', name, jsonb_build_object('slot', slot, 'dead_letters', letters));
    -- Last, because no rollback brings a slot back.
    if slot is not null then
        perform pg_drop_replication_slot(slot);
    end if;
end
$function$;
comment on function postbox.drop_consumer_group(text, boolean) is
    'Drops a consumer group and its replication slot, and with it the position; refuses while a consumer is connected, and dead letters without force';

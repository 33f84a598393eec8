-- Undoes create_outbox (the table goes, with its rows) or adopt_outbox (only the mark goes).

create or replace function postbox.drop_outbox(
    name   text,
    schema text    default 'public',
    force  boolean default false
) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    target regclass;
    is_adopted boolean;
    waiting regclass;
    published regclass;
    holds boolean;
    readers text;
    claims text;
    captured text;
begin
    if name is null or schema is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = 'the name and the schema of an outbox cannot be NULL',
            hint = 'postbox.outbox_status() lists the outboxes.';
    end if;
    -- Another drop of it, or a group that is just being made on it, is waited for.
    perform pg_advisory_xact_lock(postbox._lock_key(to_regclass(format('%I.%I', schema, name))));
    -- Looked up with a snapshot taken after the wait.
    select c.oid into target
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relname = drop_outbox.name and n.nspname = drop_outbox.schema;
    if not found then
        raise exception using errcode = 'undefined_table',
            message = format('outbox "%s.%s" does not exist', schema, name),
            hint = 'postbox.outbox_status() lists the outboxes. Give the bare name, unquoted, and the schema as the second argument.';
    end if;
    select m.adopted into is_adopted from postbox._marker m where m.outbox = target;
    if not found then
        raise exception using errcode = 'wrong_object_type',
            message = format('"%s.%s" is not an outbox', schema, name),
            hint = 'postbox.outbox_status() lists the outboxes. DROP TABLE drops other tables.';
    end if;
    select string_agg(g.group_name, ', ' order by g.group_name) into readers
        from postbox.consumer_group_outbox g
        where g.outbox = target;
    if readers is not null and not coalesce(force, false) then
        raise exception using errcode = 'object_in_use',
            message = format('outbox "%s.%s" is read by consumer group %s', schema, name, readers),
            detail = 'What these groups have not consumed yet they still can after the drop, but nothing new can be published.',
            hint = format('Drop the group with postbox.drop_consumer_group, or drop the outbox all the same: '
                'postbox.drop_outbox(%L, %L, force => true).', name, schema);
    end if;
    select string_agg(c.schema || '.' || c.name, ', ' order by c.schema, c.name) into captured from postbox.captures c where c.outbox_relation = target;
    if captured is not null then
        raise exception using errcode = 'dependent_objects_still_exist',
            message = format('outbox "%s.%s" takes the changes of table %s', schema, name, captured),
            detail = 'Without it nothing could be written to the table any more.',
            hint = 'End the capture first: postbox.disable_outbox.';
    end if;
    select l.waiting into waiting from postbox.outbox_later l join pg_class c on c.oid = l.waiting where l.outbox = target;
    if waiting is not null then
        execute format('select exists (select from %s)', waiting) into holds;
        if holds and not coalesce(force, false) then
            raise exception using errcode = 'object_in_use',
                message = format('outbox "%s.%s" has delayed events, in %s', schema, name, waiting),
                hint = format('Wait until they have left, or drop the outbox with them: postbox.drop_outbox(%L, %L, force => true).', name, schema);
        end if;
        execute format('drop table %s', waiting);
    end if;
    select o.published into published from postbox.outbox_once o join pg_class c on c.oid = o.published where o.outbox = target;
    if published is not null then
        execute format('drop table %s', published);
    end if;
    -- What waits in a slot of pgoutput is still read by it.
    update postbox.consumer_group_outbox o
        set marker = t.tgargs
        from pg_trigger t
        where o.outbox = target and t.tgrelid = o.outbox and t.tgname = 'postbox_outbox' and t.tgparentid = 0;
    if is_adopted then
        if exists (select from postbox._published p where p.outbox = target) then
            execute format('alter publication postbox drop table only %I.%I', schema, name);
        end if;
        execute format('drop trigger postbox_outbox on %I.%I', schema, name);
    else
        -- In this order, as publishers write the claim first and then its event.
        select format('%I.%I, ', k.schema, k.name) into claims from postbox._claim_check k where k.outbox = target;
        execute format('drop table %s%I.%I', claims, schema, name);
    end if;
end
$function$;
comment on function postbox.drop_outbox(text, text, boolean) is
    'Drops an outbox made by create_outbox with its rows, or takes the mark off an adopted table; '
    'refuses while a consumer group reads it, unless force';

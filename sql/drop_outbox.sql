-- Undoes create_outbox (the table goes, with its rows) or adopt_outbox (only the mark goes).

-- For the caller's transaction: nobody publishes to the outbox, and nobody begins to. In the order of publishers, who write what lies beside an outbox
-- before its row. One that has written a row already may want the rest still, while we want the row: half a second is less than deadlock_timeout, so we
-- give up before it is harmed.
create or replace function postbox._lock_to_drop(outbox regclass, schema text, name text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '500ms'
as $function$
declare
    part regclass;
begin
    for part in
        select p.relation from (
            select l.waiting, 1 from postbox.outbox_later l join pg_class c on c.oid = l.waiting where l.outbox = _lock_to_drop.outbox
            union all
            select o.published, 2 from postbox.outbox_once o join pg_class c on c.oid = o.published where o.outbox = _lock_to_drop.outbox
            union all
            select k.claims::regclass, 3 from postbox._claim_check k where k.outbox = _lock_to_drop.outbox
            union all
            select _lock_to_drop.outbox, 4
        ) p(relation, n)
        order by p.n
    loop
        execute format('lock table %s in access exclusive mode', part);
    end loop;
exception
when insufficient_privilege then
    -- Who does not own them is told so by what drops them.
    null;
when lock_not_available then
    raise exception using errcode = 'lock_not_available',
        message = format('outbox "%s.%s" is in use', schema, name),
        detail = 'A transaction that published to it or read it has not ended for half a second.',
        hint = 'Try again, or when fewer use it. pg_locks shows who holds its locks.';
end
$function$;
comment on function postbox._lock_to_drop(regclass, text, text) is 'Private: an outbox that nobody else uses until the commit';

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
    arguments text[];
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
    perform postbox._require_read_committed(format('outbox "%s.%s" cannot be dropped', schema, name));
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
    select m.adopted, m.arguments into is_adopted, arguments from postbox._marker m where m.outbox = target;
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
            detail = 'What these groups have not consumed yet they still can after the drop, but for the data of claims, and nothing new can be published.',
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
    perform postbox._lock_to_drop(target, schema, name);
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
    if 'emit=on' = any (arguments) then
        perform postbox._note_emit(target, false);
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
        select format('%I.%I, ', k.schema, k.name) into claims from postbox._claim_check k where k.outbox = target;
        execute format('drop table %s%I.%I', claims, schema, name);
    end if;
end
$function$;
comment on function postbox.drop_outbox(text, text, boolean) is
    'Drops an outbox made by create_outbox with its rows, or takes the mark off an adopted table; '
    'refuses while a consumer group reads it, unless force';

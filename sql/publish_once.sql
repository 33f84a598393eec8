-- Events that are published once, however often a caller repeats itself. The ids are in a table beside the outbox, <outbox>_once, whose unique
-- key decides it among concurrent callers too; maintenance removes those that are older than the window.

create or replace function postbox._enable_unique_events(outbox regclass, name text, kept_for interval) returns regclass
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    marker constant postbox._marker := postbox._known_outbox(outbox, name);
    beside regclass;
begin
    if kept_for is null or kept_for <= interval '0' then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('kept_for of outbox "%s" is %s, must be more than 0', name, coalesce(kept_for::text, 'NULL')),
            hint = 'How long an event that is published once more is known, for instance interval ''7 days''.';
    end if;
    update postbox.outbox_once o set kept_for = _enable_unique_events.kept_for where o.outbox = _enable_unique_events.outbox
        returning o.published into beside;
    if found then
        return beside;
    end if;
    beside := postbox._make_beside(marker, '_once',
        'event_id     pg_catalog.uuid        not null primary key,
         published_at pg_catalog.timestamptz not null default pg_catalog.clock_timestamp()',
        'Ids that postbox.publish_once has published to outbox %s; made by Postbox');
    execute format('create index on %s (published_at)', beside);
    insert into postbox.outbox_once (outbox, published, kept_for)
        values (_enable_unique_events.outbox, beside, _enable_unique_events.kept_for);
    return beside;
end
$function$;
comment on function postbox._enable_unique_events(regclass, text, interval) is 'Private: enable_unique_events with the outbox looked up';

create or replace function postbox.enable_unique_events(outbox text, kept_for interval default '7 days') returns regclass
    language sql volatile
    begin atomic
        select postbox._enable_unique_events(to_regclass(outbox), outbox, kept_for);
    end;
comment on function postbox.enable_unique_events(text, interval) is
    'Makes the table <outbox>_once, where publish_once notes ids, known for kept_for at least; called again, changes kept_for';

create or replace function postbox._publish_once(outbox regclass, name text, event_id uuid, type text, payload text, key text, headers jsonb) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    marker constant postbox._marker := postbox._known_outbox(outbox, name);
    beside regclass;
    rows int;
begin
    if event_id is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = format('the event_id of an event for outbox "%s" is NULL', name),
            hint = 'It says which events are the same: derive it from what caused the event, so that a repetition has it too.';
    end if;
    select o.published into beside from postbox.outbox_once o where o.outbox = _publish_once.outbox;
    if not found then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('outbox "%s" knows no ids of earlier events', name),
            hint = format('Its owner calls postbox.enable_unique_events(%L) once.', name);
    end if;
    execute format('insert into %s (event_id) values ($1) on conflict do nothing', beside) using event_id;
    get diagnostics rows = row_count;
    if rows = 0 then
        return false;
    end if;
    -- NULL as from publish: a trigger or a rule kept the row out. The id stays known: one more call returns false.
    return case when postbox.publish(format('%I.%I', marker.schema, marker.name), type, payload, key, headers, event_id) is not null then true end;
end
$function$;
comment on function postbox._publish_once(regclass, text, uuid, text, text, text, jsonb) is 'Private: publish_once with the outbox looked up';

create or replace function postbox.publish_once(
    outbox text, event_id uuid, type text, payload text, key text default null, headers jsonb default null
) returns boolean
    language sql volatile
    begin atomic
        select postbox._publish_once(to_regclass(outbox), outbox, event_id, type, payload, key, headers);
    end;
comment on function postbox.publish_once(text, uuid, text, text, text, jsonb) is
    'Publishes an event unless one with this id was published by it before; true: it is new. Waits for a transaction that is publishing the same id. Needs INSERT on the outbox and on <outbox>_once';

create or replace function postbox.publish_once(
    outbox text, event_id uuid, type text, payload jsonb, key text default null, headers jsonb default null
) returns boolean
    language sql volatile
    begin atomic
        select postbox._publish_once(to_regclass(outbox), outbox, event_id, type, payload::text, key, headers);
    end;
comment on function postbox.publish_once(text, uuid, text, jsonb, text, jsonb) is
    'Publishes an event unless one with this id was published by it before; true: it is new. Waits for a transaction that is publishing the same id. Needs INSERT on the outbox and on <outbox>_once';

-- What maintenance does for them.
create or replace function postbox._forget_published() returns table (subject text, outcome text, detail text)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
as $function$
declare
    most constant int := 10000;
    once record;
    removed bigint;
begin
    delete from postbox.outbox_once o where not exists (select from postbox._marker m where m.outbox = o.outbox)
        or not exists (select from pg_class c where c.oid = o.published);
    for once in select o.published, o.kept_for, m.schema, m.name from postbox.outbox_once o join postbox._marker m on m.outbox = o.outbox order by 3, 4 loop
        subject := format('%I.%I', once.schema, once.name);
        begin
            execute format(
                'delete from %1$s p where p.ctid = any (array(select o.ctid from %1$s o where o.published_at < clock_timestamp() - $1 order by o.published_at limit $2))',
                once.published) using once.kept_for, most;
            get diagnostics removed = row_count;
            outcome := case when removed >= most then 'more' else 'removed' end;
            detail := format('%s ids of events that were published once', removed);
            if removed > 0 then
                return next;
            end if;
        exception when others then
            outcome := 'skipped';
            detail := sqlerrm;
            return next;
        end;
    end loop;
end
$function$;
comment on function postbox._forget_published() is 'Private: removes ids that are older than their window';

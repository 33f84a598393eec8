-- Events that leave later. They wait in a table beside the outbox, <outbox>_later, which is the outbox owner's, holds no slot back and is
-- dumped like any table. Maintenance moves those that are due into the outbox, in one transaction each time: each leaves once.

-- A table of ours beside an outbox. Who may insert into the one may insert into the other.
create or replace function postbox._make_beside(marker postbox._marker, suffix text, columns text, about text) returns regclass
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    side_name constant text := (marker).name || suffix;
    full_name constant text := format('%I.%I', (marker).schema, side_name);
    owner constant name := (select pg_get_userbyid(c.relowner) from pg_class c where c.oid = (marker).outbox);
    publisher text;
begin
    if octet_length(side_name) > current_setting('max_identifier_length')::int then
        raise exception using errcode = 'invalid_name',
            message = format('table "%s" of outbox "%s" would have a name of %s bytes, at most %s are possible', side_name, (marker).name,
                octet_length(side_name), current_setting('max_identifier_length')),
            hint = 'Rename the outbox first.';
    end if;
    if to_regclass(full_name) is not null then
        raise exception using errcode = 'duplicate_table',
            message = format('relation "%s", which is to belong to outbox "%s", exists already', full_name, (marker).name),
            hint = 'Rename that relation.';
    end if;
    execute format('create table %s (%s)', full_name, columns);
    execute format('comment on table %s is %L', full_name, format(about, (marker).name));
    for publisher in
        select case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end from pg_class c cross join lateral aclexplode(c.relacl) a
        where c.oid = (marker).outbox and a.privilege_type = 'INSERT' and a.grantee <> c.relowner
    loop
        execute format('grant insert on %s to %s', full_name, publisher);
    end loop;
    if owner <> current_user then
        execute format('alter table %s owner to %I', full_name, owner);
    end if;
    return full_name::regclass;
end
$function$;
comment on function postbox._make_beside(postbox._marker, text, text, text) is 'Private: makes a table that belongs to an outbox';

create or replace function postbox._enable_delayed_events(outbox regclass, name text) returns regclass
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    marker constant postbox._marker := postbox._known_outbox(outbox, name);
    beside regclass;
begin
    if exists (select from postbox.outbox_later l where l.outbox = _enable_delayed_events.outbox) then
        raise exception using errcode = 'duplicate_table',
            message = format('outbox "%s" takes delayed events already', name),
            hint = 'postbox.publish_later publishes one.';
    end if;
    beside := postbox._make_beside(marker, '_later', format(
        'id       pg_catalog.int8        generated always as identity primary key,
         due_at   pg_catalog.timestamptz not null,
         event_id pg_catalog.uuid        not null default pg_catalog.gen_random_uuid(),
         key      pg_catalog.text,
         type     pg_catalog.text        not null,
         headers  pg_catalog.jsonb,
         payload  %s', (
            select format_type(a.atttypid, null) from pg_attribute a
            where a.attrelid = marker.outbox and a.attname = coalesce(postbox._marker_column(marker.arguments, 'payload'), 'payload') and not a.attisdropped)),
        'Events of outbox %s that leave at due_at; made by Postbox');
    execute format('create index on %s (due_at, id)', beside);
    insert into postbox.outbox_later (outbox, waiting) values (_enable_delayed_events.outbox, beside);
    return beside;
end
$function$;
comment on function postbox._enable_delayed_events(regclass, text) is 'Private: enable_delayed_events with the outbox looked up';

create or replace function postbox.enable_delayed_events(outbox text) returns regclass
    language sql volatile
    begin atomic
        select postbox._enable_delayed_events(to_regclass(outbox), outbox);
    end;
comment on function postbox.enable_delayed_events(text) is
    'Makes the table <outbox>_later, where events of publish_later wait until they are due; it is the outbox owner''s, and those who may insert into the outbox may insert there';

create or replace function postbox._publish_later(
    outbox regclass, name text, type text, payload text, visible_at timestamptz, key text, headers jsonb, event_id uuid
) returns uuid
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    marker constant postbox._marker := postbox._known_outbox(outbox, name);
    beside regclass;
    id constant uuid := coalesce(event_id, gen_random_uuid());
begin
    if visible_at is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = format('visible_at of an event for outbox "%s" is NULL', name),
            hint = 'postbox.publish publishes an event that leaves with its transaction.';
    end if;
    if visible_at <= clock_timestamp() then
        return postbox.publish(format('%I.%I', marker.schema, marker.name), type, payload, key, headers, id);
    end if;
    select l.waiting into beside from postbox.outbox_later l where l.outbox = _publish_later.outbox;
    if not found then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('outbox "%s" takes no delayed events', name),
            hint = format('Its owner calls postbox.enable_delayed_events(%L) once.', name);
    end if;
    execute format('insert into %s (due_at, event_id, key, type, headers, payload) values ($1, $2, $3, $4, $5, $6::%s)', beside,
        (select format_type(a.atttypid, null) from pg_attribute a where a.attrelid = beside and a.attname = 'payload'))
        using visible_at, id, key, type, headers, payload;
    return id;
end
$function$;
comment on function postbox._publish_later(regclass, text, text, text, timestamptz, text, jsonb, uuid) is 'Private: publish_later with the outbox looked up';

create or replace function postbox.publish_later(
    outbox text, type text, payload text, visible_at timestamptz, key text default null, headers jsonb default null, event_id uuid default null
) returns uuid
    language sql volatile
    begin atomic
        select postbox._publish_later(to_regclass(outbox), outbox, type, payload, visible_at, key, headers, event_id);
    end;
comment on function postbox.publish_later(text, text, text, timestamptz, text, jsonb, uuid) is
    'Publishes an event that leaves when visible_at is past, as soon as maintenance comes to it; it is part of the transaction. Needs INSERT on <outbox>_later';

create or replace function postbox.publish_later(
    outbox text, type text, payload jsonb, visible_at timestamptz, key text default null, headers jsonb default null, event_id uuid default null
) returns uuid
    language sql volatile
    begin atomic
        select postbox._publish_later(to_regclass(outbox), outbox, type, payload::text, visible_at, key, headers, event_id);
    end;
comment on function postbox.publish_later(text, text, jsonb, timestamptz, text, jsonb, uuid) is
    'Publishes an event that leaves when visible_at is past, as soon as maintenance comes to it; it is part of the transaction. Needs INSERT on <outbox>_later';

-- Two that do it at once delete each row once.
create or replace function postbox._publish_due(outbox regclass, most int) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
as $function$
declare
    marker constant postbox._marker := postbox._known_outbox(outbox, outbox::text);
    moved bigint;
begin
    execute format(
        'with due as (
             select l.id from %1$s l where l.due_at <= clock_timestamp() order by l.due_at, l.id limit $1
         ), gone as (
             delete from %1$s l using due d where l.id = d.id returning l.*
         ), published as materialized (
             select postbox.publish($2, g.type, g.payload::text, g.key, g.headers, g.event_id) from (select g.* from gone g order by g.due_at, g.id) g
         )
         select count(*) from published',
        (select l.waiting from postbox.outbox_later l where l.outbox = _publish_due.outbox))
        into moved using most, format('%I.%I', marker.schema, marker.name);
    return moved;
end
$function$;
comment on function postbox._publish_due(regclass, int) is 'Private: moves delayed events that are due into an outbox';

-- What maintenance does for them.
create or replace function postbox._publish_all_due() returns table (subject text, outcome text, detail text)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    most constant int := 10000;
    most_failing constant int := 100;
    later record;
    batch int;
    moved bigint;
    total bigint;
    failing int;
    postponed bigint;
begin
    delete from postbox.outbox_later l where not exists (select from postbox._marker m where m.outbox = l.outbox)
        or not exists (select from pg_class c where c.oid = l.waiting);
    for later in select l.outbox, l.waiting, m.schema, m.name from postbox.outbox_later l join postbox._marker m on m.outbox = l.outbox order by 2, 3 loop
        subject := format('%I.%I', later.schema, later.name);
        batch := most;
        total := 0;
        failing := 0;
        begin
            -- Whom nothing is allowed puts nothing off.
            if not has_table_privilege(later.waiting, 'select') or not has_table_privilege(later.waiting, 'update')
                or not has_table_privilege(later.waiting, 'delete') or not has_any_column_privilege(later.outbox, 'insert')
            then
                raise exception using errcode = 'insufficient_privilege',
                    message = format('role "%s" may not move delayed events from %s to %s', current_user, later.waiting, later.outbox),
                    hint = 'postbox.grant_role(''maintainer'', ..., ''{outbox}'') grants what maintenance needs.';
            end if;
            loop
                begin
                    moved := postbox._publish_due(later.outbox, batch);
                    total := total + moved;
                    exit when moved < batch or total >= most;
                    batch := least(batch * 2, most);
                exception when lock_not_available then
                    raise;
                when others then
                    -- One of them cannot be published, or is not allowed there. It is found by taking fewer, and comes after the others.
                    if batch > 1 then
                        batch := greatest(batch / 8, 1);
                        continue;
                    end if;
                    outcome := 'skipped';
                    detail := sqlerrm;
                    execute format(
                        'update %1$s l set due_at = clock_timestamp() + interval ''1 minute''
                         where l.id = (select d.id from %1$s d where d.due_at <= clock_timestamp() order by d.due_at, d.id limit 1) returning l.id', later.waiting)
                        into postponed;
                    detail := format('delayed event %s is tried again in a minute: %s', postponed, detail);
                    return next;
                    failing := failing + 1;
                    exit when failing >= most_failing;
                end;
            end loop;
            outcome := case when total >= most or failing >= most_failing then 'more' else 'published' end;
            detail := format('%s delayed events', total);
            if total > 0 then
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
comment on function postbox._publish_all_due() is 'Private: moves delayed events that are due into their outboxes';

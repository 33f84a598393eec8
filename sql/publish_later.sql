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

create or replace function postbox._publish_column(outbox regclass, name text, arguments text[], role text, out column_name text, out type_oid oid)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    wanted constant text := postbox._marker_column(arguments, role);
    optional constant boolean := role in ('key', 'headers');
begin
    select a.attname, a.atttypid into column_name, type_oid
        from pg_attribute a where a.attrelid = outbox and a.attname = wanted and a.attnum > 0 and not a.attisdropped and a.attgenerated <> 'v';
    if not found and not (optional and wanted in ('', role) and not (role || '=' || role) = any (arguments)) then
        raise exception using errcode = 'wrong_object_type',
            message = format('the columns of outbox "%s" cannot be told: ', name)
                || case when wanted = '' or not exists (select from unnest(arguments) as a(argument) where starts_with(a.argument, role || '='))
                    then format('there is no column for %s, which every event needs', role)
                    else format('the column "%s" for %s does not exist', wanted, role) end,
            hint = 'Adopt the table anew: postbox.drop_outbox takes the mark off it, then postbox.adopt_outbox.';
    end if;
end
$function$;
comment on function postbox._publish_column(regclass, text, text[], text) is 'Private: the column that a part of an event goes into';

-- The same, if a value of type `given` can be written there; NULL if there is none and `is_null`. A value is cast only where that is what the caller means.
create or replace function postbox._fitting_column(
    outbox regclass, name text, arguments text[], role text, given regtype, is_null boolean, out column_name text, out type_oid oid
)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
begin
    select f.column_name, f.type_oid into column_name, type_oid from postbox._publish_column(outbox, name, arguments, role) f;
    if column_name is null then
        if not is_null then
            raise exception using errcode = 'undefined_column',
                message = format('outbox "%s" has no column for %s', name, role),
                hint = format('Leave %1$s out, or add the column and adopt the table anew with postbox.adopt_outbox.', role);
        end if;
        return;
    end if;
    if given::oid <> type_oid and not exists (
        select from (values
            ('jsonb'::regtype, '{text,varchar,json}'::regtype[]),
            ('json', '{text,varchar,jsonb}'),
            ('uuid', '{text,varchar}'),
            ('text', '{varchar,jsonb,json,bytea,uuid,int2,int4,int8}')
        ) as fits(given, types)
        where fits.given = _fitting_column.given and type_oid = any (fits.types)
    ) then
        raise exception using errcode = 'datatype_mismatch',
            message = format('%s of type %s does not fit column "%s" of outbox "%s", which has type %s', role, given, column_name, name, format_type(type_oid, null)),
            hint = case
                when role = 'payload' and given = 'bytea'::regtype
                    then 'This outbox takes text: pass convert_from(payload, ''UTF8''), or make an outbox with payload_type bytea.'
                when role = 'payload' and type_oid = 'bytea'::regtype
                    then 'This outbox takes bytes: pass convert_to(payload::text, ''UTF8''), or a bytea.'
                else 'postbox.publish cannot write this column; INSERT into the table instead.' end;
    end if;
end
$function$;
comment on function postbox._fitting_column(regclass, text, text[], text, regtype, boolean) is 'Private: the column that a part of an event goes into, if it can';

-- What `publish` would refuse when the event is due is refused now, in the same words. The payload comes to it as text then.
create or replace function postbox._require_publishable(marker postbox._marker, name text, key text, headers jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    key_type regtype;
begin
    perform postbox._fitting_column(marker.outbox, name, marker.arguments, p.role, p.given, p.is_null)
        from (values
            ('event_id', 'uuid'::regtype, false),
            ('type', 'text'::regtype, false),
            ('headers', 'jsonb'::regtype, headers is null),
            ('payload', 'text'::regtype, false)
        ) as p(role, given, is_null);
    key_type := (postbox._fitting_column(marker.outbox, name, marker.arguments, 'key', 'text', key is null)).type_oid;
    if key is not null then
        execute format('select $1::%s', key_type) using key;
    end if;
end
$function$;
comment on function postbox._require_publishable(postbox._marker, text, text, jsonb) is 'Private: refuses an event that publish would refuse';

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
    perform postbox._require_publishable(marker, name, null, null);
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
    if type is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = 'the type of an event cannot be NULL',
            hint = 'postbox.publish needs an outbox and a type; payload, key and headers may be NULL.';
    end if;
    select l.waiting into beside from postbox.outbox_later l where l.outbox = _publish_later.outbox;
    if not found then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('outbox "%s" takes no delayed events', name),
            hint = format('Its owner calls postbox.enable_delayed_events(%L) once.', name);
    end if;
    perform postbox._require_publishable(marker, name, key, headers);
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

-- Those that are due, first those whose time came first. Nobody moves them or takes them back any more; what somebody is just doing that to is left to
-- him, and comes with a later run if it is still due then.
create or replace function postbox._take_due(waiting regclass, most int) returns bigint[]
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
as $function$
declare
    ids bigint[];
begin
    execute format('select array(select l.id from %s l where l.due_at <= $1 order by l.due_at, l.id limit $2 for update skip locked)', waiting)
        into ids using clock_timestamp(), most;
    return ids;
end
$function$;
comment on function postbox._take_due(regclass, int) is 'Private: the delayed events that are due, locked';

create or replace function postbox._publish_due(outbox regclass, ids bigint[]) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
as $function$
declare
    marker constant postbox._marker := postbox._known_outbox(outbox, outbox::text);
    moved bigint;
begin
    execute format(
        'with gone as (
             delete from %s l where l.id = any ($1) returning l.*
         ), published as materialized (
             select postbox.publish($2, g.type, g.payload::text, g.key, g.headers, g.event_id) from (select g.* from gone g order by g.due_at, g.id) g
         )
         select count(*) from published',
        (select l.waiting from postbox.outbox_later l where l.outbox = _publish_due.outbox))
        into moved using ids, format('%I.%I', marker.schema, marker.name);
    return moved;
end
$function$;
comment on function postbox._publish_due(regclass, bigint[]) is 'Private: moves delayed events into an outbox';

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
    ids bigint[];
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
                or not has_schema_privilege(later.schema, 'usage')
                or exists (select from postbox._owned_sequences(later.outbox) s where not has_sequence_privilege(s.sequence, 'usage, update'))
            then
                raise exception using errcode = 'insufficient_privilege',
                    message = format('role "%s" may not move delayed events from %s to %s', current_user, later.waiting, later.outbox),
                    hint = 'postbox.grant_role(''maintainer'', ..., ''{outbox}'') grants what maintenance needs.';
            end if;
            loop
                ids := postbox._take_due(later.waiting, batch);
                exit when ids = '{}';
                begin
                    moved := postbox._publish_due(later.outbox, ids);
                    total := total + moved;
                    exit when moved < batch or total >= most;
                    batch := least(batch * 2, most);
                exception when lock_not_available then
                    raise;
                when others then
                    -- One of them cannot be published, or is not allowed there. It is found by taking fewer, and comes after the others.
                    if cardinality(ids) > 1 then
                        batch := greatest(cardinality(ids) / 8, 1);
                        continue;
                    end if;
                    outcome := 'skipped';
                    detail := format('delayed event %s is tried again in a minute: %s', ids[1], sqlerrm);
                    execute format('update %s l set due_at = clock_timestamp() + interval ''1 minute'' where l.id = $1', later.waiting) using ids[1];
                    return next;
                    failing := failing + 1;
                    exit when failing >= most_failing;
                end;
            end loop;
            outcome := case when total >= most or failing >= most_failing then 'more' else 'published' end;
            detail := format('%s delayed events', total);
            if total > 0 or failing >= most_failing then
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

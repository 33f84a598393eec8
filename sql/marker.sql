-- The marker: a trigger named postbox_outbox makes a table an outbox. It never fires; it is there because PostgreSQL
-- versions, invalidates, dumps and drops it with the table. Its arguments are role=column pairs, where a role that is
-- not named uses the column of its own name, and `role=` says that there is no such column. `header:name=column` adds a
-- column to the headers; no header's name has an equals sign. origin=adopted says that the table was not made by
-- create_outbox, emit=on that messages of postbox.emit are its events.

-- tgargs holds the arguments one after the other, each ended by a zero byte.
create or replace function postbox._marker_arguments(tgargs bytea) returns text[]
    language sql stable strict parallel safe
    return (
        select coalesce(array_agg(convert_from(decode(m[1], 'hex'), getdatabaseencoding()) order by n), '{}')
        from regexp_matches(encode(tgargs, 'hex'), '((?:(?!00)..)*)00', 'g') with ordinality as argument(m, n)
    );
comment on function postbox._marker_arguments(bytea) is 'Private: pg_trigger.tgargs as an array';

-- A database with the encoding SQL_ASCII takes any bytes for a name, and a client that asks for UTF-8 gets an error for a whole answer
-- with one that is not.
create or replace function postbox._shown(name text) returns text
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $function$
begin
    if getdatabaseencoding() = 'SQL_ASCII' then
        begin
            return convert_from(convert_to(name, 'SQL_ASCII'), 'UTF8');
        exception when character_not_in_repertoire then
            return encode(convert_to(name, 'SQL_ASCII'), 'escape');
        end;
    end if;
    return name;
end
$function$;
comment on function postbox._shown(text) is 'Private: a name, escaped where it is not UTF-8';

create or replace function postbox._require_shown(schema text, name text) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
begin
    if postbox._shown(schema || '.' || name) <> schema || '.' || name then
        raise exception using errcode = 'invalid_name',
            message = format('"%s" is not UTF-8 and cannot be the name of an outbox', postbox._shown(schema || '.' || name)),
            detail = 'Events bear the name of their outbox and are UTF-8 whatever the database has.',
            hint = 'Give it another name, and its schema: ALTER TABLE ... RENAME TO ..., ALTER SCHEMA ... RENAME TO ....';
    end if;
end
$function$;
comment on function postbox._require_shown(text, text) is 'Private: refuses a name of an outbox that is not UTF-8';

create or replace function postbox._marker_column(arguments text[], role text) returns text
    language sql immutable strict parallel safe
    return coalesce(
        (select substr(argument, length(role) + 2) from unnest(arguments) as argument where starts_with(argument, role || '=') limit 1),
        role
    );
comment on function postbox._marker_column(text[], text) is 'Private: the column that plays a role in an outbox';

-- Clones of the marker on the leaves have a parent; only roots are outboxes.
create or replace view postbox._marker as
    select c.oid                                    as outbox,
           n.nspname                                as schema,
           c.relname                                as name,
           c.relkind                                as relkind,
           postbox._marker_arguments(t.tgargs)      as arguments,
           'origin=adopted' = any (postbox._marker_arguments(t.tgargs)) as adopted
    from pg_trigger t
    join pg_class c on c.oid = t.tgrelid
    join pg_namespace n on n.oid = c.relnamespace
    where t.tgname = 'postbox_outbox' and t.tgparentid = 0;
comment on view postbox._marker is 'Private: the tables that carry the marker trigger';

-- One lock for each outbox, which dropping it and making a group on it take. 1886352500 is "post" in ASCII.
create or replace function postbox._lock_key(outbox regclass) returns bigint
    language sql immutable strict parallel safe
    return 1886352500::bigint << 32 | outbox::oid::bigint;
comment on function postbox._lock_key(regclass) is 'Private: the key of the advisory lock of an outbox';

create or replace function postbox._known_outbox(outbox regclass, name text) returns postbox._marker
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    marker postbox._marker;
begin
    select m.* into marker from postbox._marker m where m.outbox = _known_outbox.outbox;
    if not found then
        raise exception using
            errcode = case when outbox is null then 'undefined_table' else 'wrong_object_type' end,
            message = case when outbox is null then format('outbox %s does not exist', coalesce('"' || name || '"', 'NULL'))
                else format('"%s" is not an outbox', name) end,
            hint = 'postbox.outbox_status() lists the outboxes. Qualify a name whose schema is not in search_path.';
    end if;
    return marker;
end
$function$;
comment on function postbox._known_outbox(regclass, text) is 'Private: an outbox that must be one';

-- For who changes what an outbox is: its marker is read and written back as a whole, so nobody else may do so until the commit, and it is read
-- as it is once they are done.
create or replace function postbox._locked_outbox(outbox regclass, name text) returns postbox._marker
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    perform postbox._known_outbox(outbox, name);
    perform postbox._require_read_committed(format('outbox "%s" cannot be changed', name));
    perform pg_advisory_xact_lock(postbox._lock_key(outbox));
    return postbox._known_outbox(outbox, name);
end
$function$;
comment on function postbox._locked_outbox(regclass, text) is 'Private: an outbox that nobody else changes until the transaction ends';

-- In one transaction: readers of the log see either.
create or replace function postbox._write_marker(marker postbox._marker, arguments text[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    execute format('drop trigger postbox_outbox on %I.%I', marker.schema, marker.name);
    execute format(
        'create trigger postbox_outbox before update on %I.%I for each row when (false)
         execute function pg_catalog.suppress_redundant_updates_trigger(%s)',
        marker.schema, marker.name,
        (select string_agg(quote_literal(argument), ', ' order by n) from unnest(arguments) with ordinality as a(argument, n)));
end
$function$;
comment on function postbox._write_marker(postbox._marker, text[]) is 'Private: other arguments for the marker of an outbox';

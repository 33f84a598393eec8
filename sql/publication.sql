-- The publication `postbox` has every outbox of the database. It is what the source pgoutput reads, for servers that cannot load the
-- output plugin. There is one for all groups, made before any of their slots: PostgreSQL looks a publication up as of the change that
-- it decodes, a slot stops for good (before PostgreSQL 18) at a change from before the publication, and no slot can be made in a
-- transaction that has made one. A second one, `postbox_claims`, has the tables of their claims, for those who want these in the stream.

-- Outboxes that are published, and how.
create or replace view postbox._published as
    select r.prrelid as outbox,
           -- From PostgreSQL 15 on some rows or columns may be left out.
           p.pubinsert and p.pubviaroot and to_jsonb(r) ->> 'prqual' is null and to_jsonb(r) ->> 'prattrs' is null as is_sound,
           -- Stored generated columns are published from PostgreSQL 18 on, if asked for.
           coalesce(to_jsonb(p) ->> 'pubgencols', 'n') = 's' as has_generated_columns,
           p.xmin as publication_xid, r.xmin as outbox_xid
    from pg_publication p
    join pg_publication_rel r on r.prpubid = p.oid
    where p.pubname = 'postbox' and not p.puballtables and not p.pubtruncate;
comment on view postbox._published is 'Private: the outboxes in the publication postbox';

create or replace function postbox._join_publication(outbox regclass) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    member record;
    joined boolean := false;
begin
    for member in
        select p.pubname, p.pubowner, t.name
        from (
            select 'postbox' as publication, m.outbox as relation, format('%I.%I', m.schema, m.name) as name from postbox._marker m where m.outbox = _join_publication.outbox
            union all
            select 'postbox_claims', k.claims, format('%I.%I', k.schema, k.name) from postbox._claim_check k where k.outbox = _join_publication.outbox
        ) t
        join pg_publication p on p.pubname = t.publication
        where not exists (select from pg_publication_rel r where r.prpubid = p.oid and r.prrelid = t.relation)
    loop
        -- Of a partitioned table all partitions are part; tables that inherit from an ordinary one are no part of the outbox.
        execute format('alter publication %I add table only %s', member.pubname, member.name);
        joined := joined or member.pubname = 'postbox';
    end loop;
    return joined;
exception when insufficient_privilege then
    raise exception using errcode = 'insufficient_privilege',
        message = format('table "%s" cannot be put into the publication %s, which the source pgoutput reads: %s', member.name, member.pubname, sqlerrm),
        hint = format('Be a member of the role that owns the publication, %s, and of the one that owns the table; or be a superuser.',
            quote_ident(pg_get_userbyid(member.pubowner)));
end
$function$;
comment on function postbox._join_publication(regclass) is 'Private: has the source pgoutput see an outbox and its claims, if there are the publications; false: the outbox was seen already';

create or replace function postbox.enable_pgoutput() returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    joined bigint;
    publication text;
    generated constant text := case when current_setting('server_version_num')::int >= 180000 then ', publish_generated_columns = stored' else '' end;
begin
    if getdatabaseencoding() not in ('UTF8', 'SQL_ASCII') then
        raise exception using errcode = 'feature_not_supported',
            message = format('this database has the encoding %s, which is not read from pgoutput', getdatabaseencoding()),
            hint = 'Use a database in UTF8, or the source postbox.';
    end if;
    foreach publication in array array['postbox', 'postbox_claims'] loop
        if exists (select from pg_publication p where p.pubname = publication and (p.puballtables or not p.pubinsert or p.pubtruncate or not p.pubviaroot)) then
            raise exception using errcode = 'object_not_in_prerequisite_state',
                message = format('there is a publication %s that was made for another purpose', publication),
                detail = 'That of Postbox has tables by name, publishes inserts alone, and those of partitions as their root''s.',
                hint = format('Rename it: ALTER PUBLICATION %s RENAME TO ...; then call postbox.enable_pgoutput() again.', publication);
        end if;
        if not exists (select from pg_publication p where p.pubname = publication) then
            execute format('create publication %I with (publish = ''insert'', publish_via_partition_root = true%s)', publication, generated);
            execute format('comment on publication %I is %L', publication, format('%s of Postbox, for consumer groups with the source pgoutput. '
                'Do not drop it while there are any: their slots could not be read any more', case publication when 'postbox' then 'Outboxes' else 'Claims' end));
        end if;
    end loop;
    select count(*) into joined from postbox._marker m where postbox._join_publication(m.outbox);
    return joined;
end
$function$;
comment on function postbox.enable_pgoutput() is
    'Makes the publications postbox and postbox_claims, which consumer groups with the source pgoutput read, with every outbox and its claims in them; those that are made later join them. Returns how many outboxes have joined now';

-- What a group with the source pgoutput needs of an outbox.
create or replace function postbox._require_published(outbox regclass, what text) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    published record;
    marker record;
    generated text;
begin
    select m.schema, m.name, m.arguments into marker from postbox._marker m where m.outbox = _require_published.outbox;
    if not found then
        -- What it published before it was dropped is still in the log.
        return;
    end if;
    select p.is_sound, p.has_generated_columns into published from postbox._published p where p.outbox = _require_published.outbox;
    if not found or not published.is_sound then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('%s needs outbox "%s.%s" in the publication postbox, with all rows and columns', what, marker.schema, marker.name),
            hint = 'As the owner of the outboxes, who may create publications: SELECT postbox.enable_pgoutput(). '
                'A row filter or a list of columns goes with ALTER PUBLICATION postbox DROP TABLE before that. '
                'If events were published meanwhile: pause the group before that, and recover it after.';
    end if;
    select a.attname into generated
        from pg_attribute a
        where a.attrelid = outbox and a.attnum > 0 and not a.attisdropped and a.attgenerated = 's' and not published.has_generated_columns
          and (a.attname in (select substring(argument from '=(.*)') from unnest(marker.arguments) as argument)
               or a.attname in (select postbox._marker_column(marker.arguments, r.role) from unnest('{event_id,type,key,headers,payload,seq}'::text[]) as r(role)))
        limit 1;
    if found then
        raise exception using errcode = 'feature_not_supported',
            message = format('%s cannot read column "%s" of outbox "%s.%s", which is generated', what, generated, marker.schema, marker.name),
            detail = 'pgoutput sends generated columns from PostgreSQL 18 on, if the publication says so.',
            hint = 'Map a plain column; or use the source postbox.';
    end if;
end
$function$;
comment on function postbox._require_published(regclass, text) is 'Private: refuses an outbox that pgoutput does not send as it is';

-- The arguments of an outbox's marker, as it is now; what its groups have noted, if it has none any more.
create or replace function postbox._marker_of(outbox oid) returns bytea
    language sql stable strict
    return coalesce(
        (select t.tgargs from pg_trigger t where t.tgrelid = _marker_of.outbox and t.tgname = 'postbox_outbox' and t.tgparentid = 0),
        (select o.marker from postbox.consumer_group_outbox o where o.outbox = _marker_of.outbox::regclass and o.marker is not null limit 1)
    );
comment on function postbox._marker_of(oid) is 'Private: what the columns of an outbox mean';

-- Of a domain the type that it is over, through all domains; else the type itself.
create or replace function postbox._base_types(types oid[]) returns oid[]
    language sql stable strict
    return (
        select array_agg(coalesce(base.type, given.type) order by given.n)
        from unnest(types) with ordinality as given(type, n)
        left join lateral (
            with recursive over as (
                select t.oid, t.typtype, t.typbasetype from pg_type t where t.oid = given.type
                union all
                select t.oid, t.typtype, t.typbasetype from over o join pg_type t on t.oid = o.typbasetype where o.typtype = 'd'
            )
            select o.oid as type from over o where o.typtype <> 'd'
        ) base on true
    );
comment on function postbox._base_types(oid[]) is 'Private: what domains are over';

create or replace function postbox._outbox_shape(outbox oid)
    returns table (schema text, name text, marker bytea, column_names text[], column_types oid[])
    language sql stable strict
    begin atomic
        select m.schema::text, m.name::text, postbox._marker_of(m.outbox),
               array_agg(a.attname::text order by a.attnum), array_agg(a.atttypid order by a.attnum)
        from postbox._marker m
        join pg_attribute a on a.attrelid = m.outbox and a.attnum > 0 and not a.attisdropped and a.attgenerated <> 'v'
        where m.outbox = _outbox_shape.outbox
        group by m.schema, m.name, m.outbox;
    end;
comment on function postbox._outbox_shape(oid) is 'Private: an outbox as it is now';

-- What messages are events of an outbox, by where they stand in the log. An outbox that is none any more is as it was last noted.
create or replace function postbox._emitter(outbox oid)
    returns table (schema text, name text, marker bytea, column_names text[], column_types oid[], since pg_lsn[], until pg_lsn[])
    language sql stable strict
    begin atomic
        with period as (
            select p.* from postbox.emit_period p join postbox._server server on server.system_identifier = p.system_identifier where p.outbox = _emitter.outbox
        ), now as (
            select * from postbox._outbox_shape(_emitter.outbox)
        ), shape as (
            select * from now
            union all
            (select p.schema, p.name, p.marker, p.column_names, p.column_types from period p where not exists (select from now) order by p.since desc limit 1)
        ), taken as (
            select p.since, p.until from period p
            union all
            -- Of a server that this database was restored from, or from before the extension was made anew.
            select '0/0', null from now n where 'emit=on' = any (postbox._marker_arguments(n.marker)) and not exists (select from period p where p.until is null)
        )
        select s.schema, s.name, s.marker, s.column_names, s.column_types, array_agg(t.since), array_agg(t.until)
        from shape s cross join taken t
        group by s.schema, s.name, s.marker, s.column_names, s.column_types;
    end;
comment on function postbox._emitter(oid) is 'Private: an outbox, and from where to where in the log messages are its events';

-- For the one who has just allowed or ended it, or is about to drop the outbox, and has locked it against those who emit: what they have written lies before
-- this place, and what they are going to write behind it.
create or replace function postbox._note_emit(outbox oid, takes boolean) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    here constant pg_lsn := pg_current_wal_insert_lsn();
    this_server constant bigint := (select s.system_identifier from postbox._server s);
begin
    if takes then
        insert into postbox.emit_period (outbox, since, system_identifier, schema, name, marker, column_names, column_types)
            select _note_emit.outbox, here, this_server, s.* from postbox._outbox_shape(_note_emit.outbox) s;
    else
        update postbox.emit_period p
            set until = here, schema = s.schema, name = s.name, marker = s.marker, column_names = s.column_names, column_types = s.column_types
            from postbox._outbox_shape(_note_emit.outbox) s
            where p.outbox = _note_emit.outbox and p.until is null and p.system_identifier = this_server;
        if not found then
            insert into postbox.emit_period (outbox, since, until, system_identifier, schema, name, marker, column_names, column_types)
                select _note_emit.outbox, '0/0', here, this_server, s.* from postbox._outbox_shape(_note_emit.outbox) s;
        end if;
    end if;
end
$function$;
comment on function postbox._note_emit(oid, boolean) is 'Private: notes that from here on an outbox takes events that are in the log only, or does not any more';

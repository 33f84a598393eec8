-- A claim check: the rows of an event that has too many of them, or its bytes, lie beside the outbox, in the table of its claims,
-- and the event says how many there are and how to know them again. They are written in the transaction of the event, under the
-- seq of the event, packed: a tuple of the log costs every group a few microseconds, and a row each would cost as much each.
--
-- The table of the claims is a ring that is cut as that of the outbox is: what belongs to the events of a leaf lies in the leaf of
-- the same number, and the two are emptied together (retention.sql). It is the user's, as the outbox is.
--
-- What makes a table the claims of an outbox is a trigger postbox_claims that never fires: as a constraint trigger it knows the
-- outbox by itself, so both may be renamed, dumped and restored. Its arguments are the thresholds.

create or replace view postbox._claim_check as
    select t.tgconstrrelid                           as outbox,
           n.nspname                                 as schema,
           c.relname                                 as name,
           c.oid                                     as claims,
           substring(pg_get_expr(p.partexprs, p.partrelid) from 'seq >> (\d+)')::int as generation_bits,
           sequence.oid                              as sequence,
           postbox._marker_column(marked.arguments, 'rows')::int  as inline_threshold_rows,
           postbox._marker_column(marked.arguments, 'bytes')::int as inline_threshold_bytes
    from pg_trigger t
    join pg_class c on c.oid = t.tgrelid
    join pg_namespace n on n.oid = c.relnamespace
    join pg_partitioned_table p on p.partrelid = c.oid
    cross join lateral (select postbox._marker_arguments(t.tgargs) as arguments) marked
    left join lateral (
        select s.oid
        from pg_attribute a
        join pg_depend d
            on d.refclassid = 'pg_class'::regclass and d.refobjid = a.attrelid and d.refobjsubid = a.attnum
            and d.classid = 'pg_class'::regclass and d.deptype = 'i'
        join pg_class s on s.oid = d.objid and s.relkind = 'S'
        where a.attrelid = t.tgconstrrelid and a.attname = 'seq' and not a.attisdropped
        limit 1
    ) sequence on true
    where t.tgname = 'postbox_claims' and t.tgparentid = 0 and t.tgconstrrelid <> 0;
comment on view postbox._claim_check is 'Private: the outboxes with a claim check, the tables of their claims, and from which size on events are claims';

create or replace view postbox.claim_checks as
    select m.name::text                              as outbox,
           m.schema::text                            as schema,
           format('%I.%I', k.schema, k.name)         as claims,
           k.inline_threshold_rows                   as inline_threshold_rows,
           k.inline_threshold_bytes                  as inline_threshold_bytes,
           storage.chunks_estimate                   as chunks_estimate,
           storage.bytes                             as bytes
    from postbox._claim_check k
    join postbox._marker m on m.outbox = k.outbox
    cross join lateral (
        select sum(case when pg_stat_get_live_tuples(t.relid) > 0 then pg_stat_get_live_tuples(t.relid)
                        else greatest(l.reltuples, 0) end)::bigint as chunks_estimate,
               coalesce(sum(pg_total_relation_size(t.relid)), 0)::bigint as bytes
        from pg_partition_tree(k.claims) t
        join pg_class l on l.oid = t.relid
        where t.isleaf
    ) storage;
comment on view postbox.claim_checks is 'Outboxes whose large events are claims';
comment on column postbox.claim_checks.claims is 'The table of the claims: schema.table, quoted as in SQL';
comment on column postbox.claim_checks.inline_threshold_rows is 'An event of more rows is a claim';
comment on column postbox.claim_checks.inline_threshold_bytes is 'An event of more bytes is a claim';
comment on column postbox.claim_checks.chunks_estimate is 'Chunks stored, as the statistics of the server have it';

-- Capture has the thresholds in its plans, which PostgreSQL keeps for as long as nothing happens to the outbox.
create or replace function postbox._plan_anew(outbox regclass) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    execute format('alter table %s alter column claim set statistics -1', outbox);
end
$function$;
comment on function postbox._plan_anew(regclass) is 'Private: has sessions plan anew what writes to an outbox with claims';

create or replace function postbox._mark_claims(outbox regclass, claims regclass, inline_threshold_rows int, inline_threshold_bytes int) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    marker constant postbox._marker := postbox._known_outbox(outbox, outbox::text);
begin
    -- With this path regclass is printed with its schema.
    execute format(
        'create constraint trigger postbox_claims after update on %s from %s not deferrable for each row when (false)
         execute function pg_catalog.suppress_redundant_updates_trigger(%L, %L)',
        claims, outbox, format('rows=%s', inline_threshold_rows), format('bytes=%s', inline_threshold_bytes));
    if not 'claim=claim' = any (marker.arguments) then
        perform postbox._write_marker(marker, marker.arguments || 'claim=claim'::text);
    end if;
    perform postbox._plan_anew(outbox);
end
$function$;
comment on function postbox._mark_claims(regclass, regclass, int, int) is 'Private: makes a table the claims of an outbox';

create or replace function postbox._enable_claim_check(
    outbox regclass, outbox_name text, inline_threshold_rows int, inline_threshold_bytes int
) returns regclass
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    most_bytes constant int := 67108864;
    marker postbox._marker;
    ring record;
    claims record;
    owner name;
    column_type oid;
    leaves_suffix constant text := '_claims_g0';
    statement text;
begin
    if inline_threshold_rows is null or inline_threshold_rows < 0 then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('inline_threshold_rows of outbox "%s" is %s, must be 0 or more', outbox_name, coalesce(inline_threshold_rows::text, 'NULL')),
            hint = 'The default is 10000: an event of more rows is a claim. 0 makes every batch with rows a claim.';
    end if;
    if inline_threshold_bytes is null or inline_threshold_bytes not between 0 and most_bytes then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('inline_threshold_bytes of outbox "%s" is %s, must be 0 to %s', outbox_name, coalesce(inline_threshold_bytes::text, 'NULL'), most_bytes),
            hint = 'The default is 1048576, 1 MiB: an event of more bytes is a claim.';
    end if;
    -- Dropping it, and making groups on it, wait.
    marker := postbox._locked_outbox(outbox, outbox_name);
    select r.generation_bits, r.sequence into ring from postbox._ring r where r.outbox = _enable_claim_check.outbox;
    if ring.generation_bits is null then
        raise exception using errcode = 'wrong_object_type',
            message = format('outbox "%s" is an adopted table, whose rows are its owner''s to remove', outbox_name),
            hint = 'A claim check is for outboxes made by postbox.create_outbox: claims go with the leaf of their events. Publish to such a one.';
    end if;

    select k.* into claims from postbox._claim_check k where k.outbox = _enable_claim_check.outbox;
    if found then
        -- Only the thresholds are new.
        execute format('drop trigger postbox_claims on %I.%I', claims.schema, claims.name);
        perform postbox._mark_claims(outbox, claims.claims, inline_threshold_rows, inline_threshold_bytes);
        return claims.claims;
    end if;

    if octet_length(marker.name) > current_setting('max_identifier_length')::int - octet_length(leaves_suffix) then
        raise exception using errcode = 'invalid_name',
            message = format('outbox name "%s" has %s bytes, must have %s at most for a claim check', marker.name, octet_length(marker.name),
                current_setting('max_identifier_length')::int - octet_length(leaves_suffix)),
            detail = 'The table of its claims is named after it, and so are that table''s leaves.',
            hint = 'Rename the outbox: ALTER TABLE ... RENAME TO.';
    end if;
    if exists (select from pg_class c where c.relnamespace = to_regnamespace(quote_ident(marker.schema))
                  and c.relname in (marker.name || '_claims', marker.name || '_claims_g0', marker.name || '_claims_g1', marker.name || '_claims_g2', marker.name || '_claims_g3')) then
        raise exception using errcode = 'duplicate_table',
            message = format('a relation named "%s.%s_claims", or one of its leaves %s_claims_g0 to %s_claims_g3, already exists', marker.schema, marker.name, marker.name, marker.name),
            hint = 'Rename that table, or drop it if it is what is left of an outbox that was dropped by DROP TABLE.';
    end if;
    select a.atttypid into column_type from pg_attribute a where a.attrelid = outbox and a.attname = 'claim' and not a.attisdropped;
    if column_type <> 'jsonb'::regtype then
        raise exception using errcode = 'duplicate_column',
            message = format('outbox "%s" has a column claim of type %s, which is not ours', outbox_name, format_type(column_type, null)),
            hint = 'Rename the column: events that are claims say so in a column of this name.';
    end if;

    -- From here on publishers wait until the commit.
    if column_type is null then
        execute format('alter table %I.%I add column claim pg_catalog.jsonb', marker.schema, marker.name);
        execute format('create index on %I.%I (seq) where claim is not null', marker.schema, marker.name);
    end if;

    execute format(
        'create table %1$I.%2$I (
            seq   pg_catalog.int8  not null,
            chunk pg_catalog.int4  not null,
            rows  pg_catalog.int4  not null,
            data  pg_catalog.bytea %4$s not null
        ) partition by list (((seq >> %3$s) & 3))',
        marker.schema, marker.name || '_claims', ring.generation_bits,
        -- Five times as fast as the other method, where the server has it.
        case when exists (select from pg_settings s where s.name = 'default_toast_compression' and 'lz4' = any (s.enumvals)) then 'compression lz4' else '' end);
    -- A chunk that fits a page once it is compressed stays in it: cut in pieces of 2 kB it would be so many tuples of the log.
    execute format('alter table %I.%I alter column data set storage main', marker.schema, marker.name || '_claims');
    execute format('create index on %I.%I (seq, chunk)', marker.schema, marker.name || '_claims');
    for generation in 0 .. 3 loop
        execute format('create table %I.%I partition of %I.%I for values in (%s)',
            marker.schema, marker.name || '_claims_g' || generation, marker.schema, marker.name || '_claims', generation);
    end loop;
    execute format('comment on table %I.%I is %L', marker.schema, marker.name || '_claims',
        format('Claims of the outbox %I of Postbox: the rows and bytes of its large events, in chunks, under the seq of the event. '
            'The trigger postbox_claims never fires; it marks the table.', marker.name));
    perform postbox._mark_claims(outbox, format('%I.%I', marker.schema, marker.name || '_claims')::regclass, inline_threshold_rows, inline_threshold_bytes);

    -- Who may do something with the outbox may do it with its claims.
    for statement in
        select format(rights.template, marker.schema, marker.name || '_claims', case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end, sequence.name)
        from pg_class c
        cross join lateral aclexplode(c.relacl) a
        cross join lateral (select ring.sequence::regclass::text as name) sequence
        join (values ('INSERT', 'grant insert on %1$I.%2$I to %3$s'),
                     ('INSERT', 'grant usage on sequence %4$s to %3$s'),
                     ('SELECT', 'grant select on %1$I.%2$I, %1$I.%2$I_g0, %1$I.%2$I_g1, %1$I.%2$I_g2, %1$I.%2$I_g3 to %3$s'),
                     ('TRUNCATE', 'grant truncate on %1$I.%2$I, %1$I.%2$I_g0, %1$I.%2$I_g1, %1$I.%2$I_g2, %1$I.%2$I_g3 to %3$s')) as rights(privilege, template)
            on rights.privilege = a.privilege_type
        where c.oid = outbox and a.grantee <> c.relowner
    loop
        execute statement;
    end loop;
    select pg_get_userbyid(c.relowner) into owner from pg_class c where c.oid = outbox;
    if owner <> current_user then
        for statement in select format('alter table %s owner to %I', t.relid, owner) from pg_partition_tree(format('%I.%I', marker.schema, marker.name || '_claims')::regclass) t loop
            execute statement;
        end loop;
    end if;
    perform postbox._join_publication(outbox);
    return format('%I.%I', marker.schema, marker.name || '_claims')::regclass;
end
$function$;
comment on function postbox._enable_claim_check(regclass, text, int, int) is 'Private: enable_claim_check with the outbox looked up';

create or replace function postbox.enable_claim_check(outbox text, inline_threshold_rows int default 10000, inline_threshold_bytes int default 1048576) returns regclass
    language sql volatile
    begin atomic
        select postbox._enable_claim_check(to_regclass(outbox), outbox, inline_threshold_rows, inline_threshold_bytes);
    end;
comment on function postbox.enable_claim_check(text, int, int) is
    'From so many rows or bytes on, what publish_batch and publish_large publish to the outbox, and what captured statements and refreshed views change, lies in a table beside it, packed, and the event says how to get it. Called again it sets the thresholds. Returns that table';

create or replace function postbox._disable_claim_check(outbox regclass, outbox_name text) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    -- A policy that hides claims from us would have them lost: an error instead.
    set row_security = off
as $function$
declare
    claims record;
    stored boolean;
begin
    -- In a transaction that sees all claims there are.
    perform postbox._locked_outbox(outbox, outbox_name);
    select k.* into claims from postbox._claim_check k where k.outbox = _disable_claim_check.outbox;
    if not found then
        return false;
    end if;
    execute format('select exists (select from %I.%I)', claims.schema, claims.name) into stored;
    if not stored then
        -- Publishers wait from here on.
        execute format('lock table %I.%I in access exclusive mode', claims.schema, claims.name);
        execute format('select exists (select from %I.%I)', claims.schema, claims.name) into stored;
    end if;
    if stored then
        raise exception using errcode = 'object_in_use',
            message = format('outbox "%s" still has claims, whose events would lose their data', outbox_name),
            hint = format('Have no new ones made: SELECT postbox.enable_claim_check(%L, 2147483647, 67108864). Retention removes those that are there; so does postbox.purge_outbox.', outbox_name);
    end if;
    execute format('drop table %I.%I', claims.schema, claims.name);
    perform postbox._plan_anew(outbox);
    return true;
end
$function$;
comment on function postbox._disable_claim_check(regclass, text) is 'Private: disable_claim_check with the outbox looked up';

create or replace function postbox.disable_claim_check(outbox text) returns boolean
    language sql volatile
    begin atomic
        select postbox._disable_claim_check(to_regclass(outbox), outbox);
    end;
comment on function postbox.disable_claim_check(text) is
    'Drops the table of the claims of an outbox, which must be empty: its events are inline again, and what is too large is refused. False: it has no claim check';

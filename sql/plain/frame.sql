-- A stored row for those who read an outbox's table instead of its slot, as pgoutput would send it: the values as their types print
-- them, behind the outbox, the transaction's id and the time of the row. Read by consumer/src/pgoutput/stored.rs.

-- `stored` is (xid, created_at, printed values).
create or replace function postbox._frame(outbox regclass, stored record) returns bytea
    language plpgsql stable strict parallel safe
    set search_path = pg_catalog, pg_temp
as $function$
declare
    printed constant text[] := stored.f3;
begin
    return 'S'::bytea || oidsend(outbox::oid) || int8send(coalesce(stored.f1::text::bigint, 0))
        || timestamptz_send(coalesce(stored.f2, '-infinity'::timestamptz)) || int2send(cardinality(printed)::int2)
        || (select string_agg(case when p.value is null then 'n'::bytea else 't'::bytea || int4send(octet_length(b.bytes)) || b.bytes end, ''::bytea order by p.n)
            from unnest(printed) with ordinality as p(value, n)
            cross join lateral convert_to(p.value, getdatabaseencoding()) as b(bytes));
end
$function$;
comment on function postbox._frame(regclass, record) is 'Private: a row of an outbox as pgoutput would send it';

create or replace function postbox._frame_sql(outbox regclass, stored text) returns text
    language plpgsql volatile strict
    set search_path = pg_catalog, pg_temp
as $function$
declare
    arguments constant text[] := (select m.arguments from postbox._marker m where m.outbox = _frame_sql.outbox);
begin
    -- As the stream prints them. The settings end with the transaction.
    perform set_config('datestyle', 'ISO', true), set_config('timezone', 'UTC', true), set_config('bytea_output', 'hex', true);
    return (
        select format('postbox._frame(%s::regclass, row(%s, %s, array[%s]::text[]))', outbox::oid,
            coalesce(max(format('(%s).%I', stored, a.attname)) filter (
                where a.attname = postbox._marker_column(arguments, 'xid') and a.atttypid = 'xid8'::regtype), 'null::xid8'),
            coalesce(max(format('(%s).%I', stored, a.attname)) filter (
                where a.attname = 'created_at' and a.atttypid = 'timestamptz'::regtype), 'null::timestamptz'),
            string_agg(format('case when (%1$s).%2$I is distinct from null then format(''%%s'', (%1$s).%2$I) end', stored, a.attname), ', ' order by a.attnum))
        from pg_attribute a
        where a.attrelid = outbox and a.attnum > 0 and not a.attisdropped and a.attgenerated <> 'v'
    );
end
$function$;
comment on function postbox._frame_sql(regclass, text) is 'Private: the expression that makes a frame of a stored row';

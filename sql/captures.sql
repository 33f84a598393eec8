-- Read from the catalogs alone: the triggers are the record of what is captured, and they name the outbox.

create or replace view postbox.captures as
    select n.nspname::text                                                  as schema,
           c.relname::text                                                  as name,
           m.schema || '.' || m.name                                        as outbox,
           substring(args.granularity from '^granularity=(.*)')             as granularity,
           key.columns                                                      as key,
           chosen.columns                                                   as columns,
           coalesce(replica.tgenabled in ('A', 'R'), false)                 as replicated,
           t.tgenabled in ('O', 'A')                                        as enabled,
           c.oid                                                            as relation,
           m.outbox                                                         as outbox_relation
    from pg_trigger t
    join pg_class c on c.oid = t.tgrelid
    join pg_namespace n on n.oid = c.relnamespace
    cross join lateral (select (postbox._marker_arguments(t.tgargs))[1] as granularity) args
    join pg_depend d on d.classid = 'pg_trigger'::regclass and d.objid = t.oid and d.refclassid = 'pg_class'::regclass and d.deptype = 'n'
    join postbox._marker m on m.outbox = d.refobjid
    left join pg_trigger replica on replica.tgrelid = t.tgrelid and replica.tgname = 'postbox_capture_row_insert'
    left join lateral (
        select array_agg(a.attname::text order by u.n) as columns
        from pg_trigger k
        cross join unnest(k.tgattr::int2[]) with ordinality as u(attnum, n)
        join pg_attribute a on a.attrelid = k.tgrelid and a.attnum = u.attnum
        where k.tgrelid = t.tgrelid and k.tgname = 'postbox_capture_key'
    ) key on true
    left join lateral (
        select array_agg(a.attname::text order by u.n) as columns
        from pg_trigger k
        cross join unnest(k.tgattr::int2[]) with ordinality as u(attnum, n)
        join pg_attribute a on a.attrelid = k.tgrelid and a.attnum = u.attnum
        where k.tgrelid = t.tgrelid and k.tgname = 'postbox_capture_columns'
    ) chosen on true
    where t.tgname = 'postbox_capture_truncate';
comment on view postbox.captures is 'The tables whose changes become events of an outbox';
comment on column postbox.captures.key is 'Columns that make the key of an event; NULL: the key is the name of the table';
comment on column postbox.captures.columns is 'Columns that events hold; NULL: all';
comment on column postbox.captures.replicated is 'Whether changes that logical replication applies are captured';
comment on column postbox.captures.enabled is 'False: somebody has disabled the trigger';

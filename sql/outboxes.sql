-- Read from the catalogs alone: no outbox is locked or scanned, and no right on it is needed.

create or replace view postbox.outboxes as
    select postbox._shown(m.name)                             as name,
           postbox._shown(m.schema)                           as schema,
           format_type(payload.atttypid, payload.atttypmod)   as payload_type,
           sequence.last_seq >> ring.generation_bits          as generation,
           storage.rows_estimate                              as rows_estimate,
           storage.bytes                                      as bytes,
           sequence.last_seq                                  as last_seq,
           m.adopted                                          as adopted,
           coalesce(readers.groups, '{}')                     as groups,
           postbox._is_replayable(m.outbox, m.arguments)      as replayable,
           coalesce(captured.tables, '{}')                    as captures
    from postbox._marker m
    left join pg_attribute payload
        on payload.attrelid = m.outbox
        and payload.attname = postbox._marker_column(m.arguments, 'payload')
        and not payload.attisdropped
    left join lateral (
        -- The ring is LIST (((seq >> bits) & 3)).
        select substring(pg_get_expr(p.partexprs, p.partrelid) from 'seq >> (\d+)')::int as generation_bits
        from pg_partitioned_table p
        where p.partrelid = m.outbox and not m.adopted
    ) ring on true
    left join lateral (
        -- NULL before the first event, and for roles that may not read the sequence.
        select case when has_sequence_privilege(s.oid, 'usage, select') then pg_sequence_last_value(s.oid) end as last_seq
        from pg_attribute a
        join pg_depend d
            on d.refclassid = 'pg_class'::regclass and d.refobjid = a.attrelid and d.refobjsubid = a.attnum
            and d.classid = 'pg_class'::regclass and d.deptype in ('a', 'i')
        join pg_class s on s.oid = d.objid and s.relkind = 'S'
        where a.attrelid = m.outbox and a.attname = postbox._marker_column(m.arguments, 'seq') and not a.attisdropped
        limit 1
    ) sequence on true
    cross join lateral (
        with recursive part as (
            select m.outbox as oid
            union all
            select i.inhrelid
            from part
            join pg_inherits i on i.inhparent = part.oid
            join pg_class c on c.oid = i.inhrelid and c.relispartition
        )
        -- The counters are the fresher ones, but a crash of the server resets them.
        select sum(case when pg_stat_get_live_tuples(c.oid) > 0 then pg_stat_get_live_tuples(c.oid)
                        else greatest(c.reltuples, 0) end)::bigint as rows_estimate,
               coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
                   + coalesce((select sum(pg_total_relation_size(t.relid)) from postbox._claim_check k, pg_partition_tree(k.claims) t where k.outbox = m.outbox), 0)::bigint as bytes
        from part
        join pg_class c on c.oid = part.oid
        where c.relkind = 'r'
    ) storage
    left join lateral (
        select array_agg(g.group_name order by g.group_name) as groups
        from postbox.consumer_group_outbox g
        where g.outbox = m.outbox
    ) readers on true
    left join lateral (
        select array_agg(c.schema || '.' || c.name order by c.schema, c.name) as tables
        from postbox.captures c
        where c.outbox_relation = m.outbox
    ) captured on true;
comment on view postbox.outboxes is 'The outboxes of this database';
comment on column postbox.outboxes.generation is
    'Generation that the newest row belongs to, counted from 0; modulo 4 it is the number of its leaf; NULL for adopted tables';
comment on column postbox.outboxes.rows_estimate is 'Rows stored, as the statistics of the server have it';
comment on column postbox.outboxes.last_seq is
    'Highest seq handed out; NULL before the first event, and for roles that may not read the sequence';
comment on column postbox.outboxes.groups is 'Consumer groups that read the outbox';
comment on column postbox.outboxes.replayable is
    'Whether stored rows can be delivered again: they say in which order (seq) and by which transaction (xid) they were written';
comment on column postbox.outboxes.captures is 'Tables whose changes are events of the outbox';

create or replace function postbox.outbox_status(name text default null, schema text default null)
    returns setof postbox.outboxes
    language sql stable
    begin atomic
        select o.*
        from postbox.outboxes o
        where (outbox_status.name is null or o.name = outbox_status.name)
          and (outbox_status.schema is null or o.schema = outbox_status.schema)
        order by o.schema, o.name;
    end;
comment on function postbox.outbox_status(text, text) is 'The outboxes of this database, or those of a name or a schema';

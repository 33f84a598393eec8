-- The ring: create_outbox partitions by LIST (((seq >> bits) & 3)). The leaf that takes rows is that of the next seq.

create or replace view postbox._ring as
    select m.outbox                                  as outbox,
           format('%I.%I', m.schema, m.name)         as outbox_name,
           ring.generation_bits                      as generation_bits,
           sequence.oid                              as sequence,
           case when has_sequence_privilege(sequence.oid, 'usage, select') then pg_sequence_last_value(sequence.oid) end as last_seq
    from pg_class c
    join postbox._marker m on m.outbox = c.oid
    left join lateral (
        select substring(pg_get_expr(p.partexprs, p.partrelid) from 'seq >> (\d+)')::int as generation_bits
        from pg_partitioned_table p
        where p.partrelid = m.outbox and not m.adopted
          -- Of other types maintenance would call the functions that their owner has written for comparing them.
          and (select count(*) from pg_attribute a
               where a.attrelid = m.outbox and (a.attname, a.atttypid) in (('seq', 'int8'::regtype), ('xid', 'xid8'::regtype)) and not a.attisdropped) = 2
    ) ring on true
    left join lateral (
        select s.oid
        from pg_attribute a
        join pg_depend d
            on d.refclassid = 'pg_class'::regclass and d.refobjid = a.attrelid and d.refobjsubid = a.attnum
            and d.classid = 'pg_class'::regclass and d.deptype in ('a', 'i')
        join pg_class s on s.oid = d.objid and s.relkind = 'S'
        where a.attrelid = m.outbox and a.attname = postbox._marker_column(m.arguments, 'seq') and not a.attisdropped
        limit 1
    ) sequence on true;
comment on view postbox._ring is 'Private: the outboxes, how they are partitioned (NULL: adopted, or not by us) and how far their sequence is';

-- The leaves of one ring; inlined where it is called.
create or replace function postbox._leaves(outbox oid, generation_bits int, last_seq bigint)
    returns table (leaf oid, leaf_name text, claims_leaf oid, claims_leaf_name text, number int, distance int, heap_bytes bigint)
    language sql stable
    begin atomic
        select c.oid,
               format('%I.%I', n.nspname, c.relname),
               claims.leaf,
               claims.leaf_name,
               substring(pg_get_expr(c.relpartbound, c.oid) from '\d+')::int,
               -- 0 for the leaf that takes rows now, 1 for the one that is next, which is the oldest.
               (substring(pg_get_expr(c.relpartbound, c.oid) from '\d+')::int - ((coalesce(_leaves.last_seq, sampled.last_seq, 0) + 1) >> _leaves.generation_bits) & 3)::int,
               pg_relation_size(c.oid) + coalesce(pg_relation_size(claims.leaf), 0)
        from pg_inherits i
        join pg_class c on c.oid = i.inhrelid and c.relispartition and c.relkind = 'r'
        join pg_namespace n on n.oid = c.relnamespace
        left join lateral (
            -- For roles that may not read the sequence.
            select s.last_seqs[array_position(s.outboxes, _leaves.outbox)] as last_seq
            from postbox.sample s
            where _leaves.last_seq is null
            order by s.taken_at desc
            limit 1
        ) sampled on true
        left join lateral (
            -- The claims of its events.
            select kc.oid as leaf, format('%I.%I', kn.nspname, kc.relname) as leaf_name
            from pg_trigger t
            join pg_inherits ki on ki.inhparent = t.tgrelid
            join pg_class kc on kc.oid = ki.inhrelid and kc.relispartition and kc.relkind = 'r'
            join pg_namespace kn on kn.oid = kc.relnamespace
            where t.tgconstrrelid = _leaves.outbox and t.tgname = 'postbox_claims' and t.tgparentid = 0
              and pg_get_expr(kc.relpartbound, kc.oid) = pg_get_expr(c.relpartbound, c.oid)
        ) claims on true
        where i.inhparent = _leaves.outbox and _leaves.generation_bits is not null;
    end;
comment on function postbox._leaves(oid, int, bigint) is 'Private: the leaves of a ring';

create or replace view postbox._leaf as
    select r.outbox as outbox, l.*
    from postbox._ring r
    cross join lateral postbox._leaves(r.outbox, r.generation_bits, r.last_seq) l;
comment on view postbox._leaf is 'Private: the leaves of the rings';

create or replace function postbox._retention(outbox oid, out retention interval, out critical_bytes bigint)
    language sql stable
    begin atomic
        select coalesce(s.retention, interval '1 day'), coalesce(s.critical_bytes, 10737418240)
        from (values (outbox)) as wanted(outbox)
        left join postbox.outbox_setting s on s.outbox = wanted.outbox;
    end;
comment on function postbox._retention(oid) is 'Private: how long an outbox keeps events, and from which size on there is an alert';

-- The newest moment that is so long ago: what is visible in it was committed before then.
create or replace function postbox._moment_before(ago interval) returns postbox.sample
    language sql stable
    begin atomic
        select s
        from postbox.sample s, postbox._server server
        where s.taken_at <= clock_timestamp() - ago
          -- On another timeline the same transaction ids are those of other transactions.
          and s.system_identifier = server.system_identifier and s.timeline = server.timeline
        order by s.taken_at desc
        limit 1;
    end;
comment on function postbox._moment_before(interval) is 'Private: the newest sample that is at least so old';

create or replace function postbox._set_retention(outbox regclass, name text, retention interval, critical_bytes bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    if (postbox._known_outbox(outbox, name)).adopted then
        raise exception using errcode = 'wrong_object_type',
            message = format('outbox "%s" is an adopted table, whose rows are its owner''s to remove', name),
            hint = 'Retention is for outboxes made by postbox.create_outbox. Delete rows of this one yourself, once every group has had them.';
    end if;
    if retention is null or retention < interval '0' then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('the retention of outbox "%s" is %s, must be 0 or more', name, coalesce(retention::text, 'NULL')),
            hint = 'For instance interval ''7 days''. 0 keeps what a consumer group still needs, and nothing else.';
    end if;
    if critical_bytes is null or critical_bytes <= 0 then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('the critical size of outbox "%s" is %s bytes, must be more than 0', name, coalesce(critical_bytes::text, 'NULL')),
            hint = 'From this size on there is an alert; the default is 10737418240, 10 GB.';
    end if;
    perform postbox._durable();
    insert into postbox.outbox_setting as s (outbox, retention, critical_bytes)
        values (_set_retention.outbox, _set_retention.retention, _set_retention.critical_bytes)
    on conflict on constraint outbox_setting_pkey do update set
        retention = excluded.retention, critical_bytes = excluded.critical_bytes;
end
$function$;
comment on function postbox._set_retention(regclass, text, interval, bigint) is 'Private: set_retention with the outbox looked up';

create or replace function postbox.set_retention(outbox text, retention interval, critical_bytes bigint default 10737418240) returns void
    language sql volatile
    begin atomic
        select postbox._set_retention(to_regclass(outbox), outbox, retention, critical_bytes);
    end;
comment on function postbox.set_retention(text, interval, bigint) is
    'How long an outbox keeps its events at least (1 day if not set), and from how many bytes on there is an alert. What a consumer group needs is kept for longer';

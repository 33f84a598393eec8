-- Giving a group rows from the table. The seam between table and slot is a snapshot taken after the slot was made: what is
-- visible in it comes from the table, all else from the slot, and the member leaves out of the stream what is visible in it.

-- `queued`: the slot has events that the group has not been given yet, so it is no new one.
create or replace function postbox._start_backfill(group_name text, done pg_snapshot[], reason text, queued boolean default false) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    -- A policy that hides rows from us would have the group miss them: an error instead.
    set row_security = off
as $function$
declare
    target record;
    seam pg_snapshot;
    seam_lsn pg_lsn;
    restored_upto bigint;
begin
    for target in
        select o.outbox, m.schema, m.name, m.adopted,
               postbox._marker_column(m.arguments, 'xid') as xid_column, postbox._marker_column(m.arguments, 'seq') as seq_column
        from postbox.consumer_group_outbox o
        join postbox._marker m on m.outbox = o.outbox
        where o.group_name = _start_backfill.group_name
        order by o.outbox
    loop
        -- Retention removes nothing from here on until it sees what this group needs.
        perform pg_advisory_xact_lock(postbox._lock_key(target.outbox));
        -- It may have begun to take events that are in the log only while that was waited for.
        perform postbox._require_replayable(target.outbox, reason);
        -- A transaction that the slot does not send was over before the slot was made, or is not visible yet although it has
        -- committed; the caller has waited for those (_wait_for_writers). One seam for all: outboxes may exchange their names before a member reads.
        seam := coalesce(seam, pg_current_snapshot());
        -- A row that is there although its transaction is not visible was restored from a dump of another server.
        execute format(
            'select max(o.%1$I) filter (where not pg_visible_in_snapshot(o.%2$I, pg_current_snapshot())) from %3$I.%4$I o',
            target.seq_column, target.xid_column, target.schema, target.name)
            into restored_upto;
        seam_lsn := pg_current_wal_insert_lsn();
        -- Rows may be gone while their events still wait in the slot: removed by the owner of an adopted table, by a purge that was
        -- forced, or with a former outbox of this name. Then all that waits there comes.
        if queued and (target.adopted or exists (
            select from postbox.consumer_group_outbox k
            where k.group_name = _start_backfill.group_name and k.outbox <> target.outbox and k.outbox_name = format('%I.%I', target.schema, target.name))
            or exists (
            select from postbox.removed r
            left join postbox.checkpoint c on c.group_name = _start_backfill.group_name
            where r.outbox = target.outbox and (c.snapshot is null or not postbox._includes(c.snapshot, r.snapshot))))
        then
            seam_lsn := '0/0';
        end if;
        -- What is left of an unfinished one has still to be given. Of a finished one the group has all, whatever the slot that was to go on from
        -- there had come to, unless the checkpoint has been moved beyond; the snapshot is this server's if that of the checkpoint is.
        insert into postbox.backfill as b (group_name, outbox, done, upto, upto_lsn, restored_upto, reason)
            values (_start_backfill.group_name, target.outbox, _start_backfill.done, seam, seam_lsn, restored_upto, _start_backfill.reason)
        on conflict on constraint backfill_pkey do update set
            done = case
                when b.finished and excluded.reason = 'recover' and not postbox._includes(excluded.done[1], b.upto) then array[b.upto]
                when b.finished then excluded.done
                when cardinality(b.done) = 0 or cardinality(excluded.done) = 0 then '{}'
                else b.done || excluded.done end,
            upto = excluded.upto, upto_lsn = excluded.upto_lsn, restored_upto = excluded.restored_upto, reason = excluded.reason,
            position = -9223372036854775808, finished = false, started_at = now();
    end loop;
end
$function$;
comment on function postbox._start_backfill(text, pg_snapshot[], text, boolean) is
    'Private: from here on the group is given the stored rows that are not visible in all of `done` before its slot goes on';

-- The next stored events of a group, in the order of seq, each in a frame of its own: up to so many rows, or less when they are
-- large. None: it was the last. `after` is the last one that was read, NULL for where the backfill stands.
--
-- An outbox has no index by seq. So it is looked through once, for where the rows are, and a held cursor keeps that list for
-- this session: it holds back neither vacuum nor anybody's lock while events are delivered. After an error it has lost its
-- place, and another session must go on.
create or replace function postbox._stored_events(group_name text, outbox oid, after bigint, rows int)
    returns table (seq bigint, frame bytea)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    -- A chunk is a small part of a table: by place, whatever the planner thinks of it.
    set enable_seqscan = off
    set jit = off
as $function$
declare
    listed refcursor := 'postbox_stored_' || outbox;
    backfill postbox.backfill;
    marker postbox._marker;
    outbox_name text;
    seq_column text;
    wanted text;
    leaves oid[] := '{}';
    places tid[] := '{}';
    seqs bigint[] := '{}';
    leaf oid;
    place tid;
    row_seq bigint;
    row_bytes int;
    bytes bigint;
    in_place bigint;
begin
    select * into backfill from postbox.backfill b where b.group_name = _stored_events.group_name and b.outbox = _stored_events.outbox::regclass;
    select * into marker from postbox._marker m where m.outbox = _stored_events.outbox;
    if marker.outbox is null then
        -- Dropped or let go meanwhile: what it held is gone.
        return;
    end if;
    perform postbox._require_replayable(marker.outbox, 'delivering stored events');
    -- Rows of tables that inherit from an ordinary one are no events.
    outbox_name := format(case when marker.relkind = 'p' then '%I.%I' else 'only %I.%I' end, marker.schema, marker.name);
    seq_column := quote_ident(postbox._marker_column(marker.arguments, 'seq'));
    wanted := format(
        '(pg_visible_in_snapshot(o.%1$I, %2$L) or o.%3$s <= %4$L)
         and (cardinality(%5$L::pg_snapshot[]) = 0
            or exists (select from unnest(%5$L::pg_snapshot[]) as d(snapshot) where pg_visible_in_snapshot(o.%1$I, d.snapshot) is not true))',
        postbox._marker_column(marker.arguments, 'xid'), backfill.upto, seq_column, backfill.restored_upto, backfill.done);
    if after is null and exists (select from pg_cursors c where c.name = listed::text) then
        close listed;
    end if;
    if not exists (select from pg_cursors c where c.name = listed::text) then
        execute format(
            'declare %I no scroll cursor with hold for
             select o.tableoid, o.ctid, o.%2$s, pg_column_size(o.%6$s) from %3$s o where o.%2$s > %4$L and %5$s order by o.%2$s',
            listed, seq_column, outbox_name, greatest(after, backfill.position), wanted,
            quote_ident(postbox._marker_column(marker.arguments, 'payload')));
    end if;
    loop
        leaves := '{}';
        places := '{}';
        seqs := '{}';
        bytes := 0;
        while cardinality(seqs) < rows and bytes < 8388608 loop
            fetch listed into leaf, place, row_seq, row_bytes;
            exit when not found;
            leaves := leaves || leaf;
            places := places || place;
            seqs := seqs || row_seq;
            bytes := bytes + coalesce(row_bytes, 0);
        end loop;
        exit when cardinality(seqs) = 0;
        execute format(
            'select count(*) from unnest($1, $2, $3) as l(leaf, place, seq)
             join %s o on o.tableoid = l.leaf and o.ctid = l.place and o.%s = l.seq
             where o.ctid = any ($2)', outbox_name, seq_column)
            into in_place using leaves, places, seqs;
        if in_place = cardinality(seqs) then
            return query execute format(
                'select l.seq, %s
                 from unnest($1, $2, $3) with ordinality as l(leaf, place, seq, number)
                 join %s o on o.tableoid = l.leaf and o.ctid = l.place and o.%s = l.seq
                 where o.ctid = any ($2)
                 order by l.number', postbox._frame_sql(marker.outbox, 'o'), outbox_name, seq_column)
                using leaves, places, seqs;
        else
            -- Its owner has updated or removed rows since.
            return query execute format(
                'select o.%2$s, %1$s from %3$s o where o.%2$s = any ($1) and %4$s order by o.%2$s',
                postbox._frame_sql(marker.outbox, 'o'), seq_column, outbox_name, wanted)
                using seqs;
        end if;
        -- All of these may be gone, and others behind them not.
        exit when found;
    end loop;
end
$function$;
comment on function postbox._stored_events(text, oid, bigint, int) is 'Private: the next rows that a group is given from the table';

-- What a member has to give before, and to leave out of, the stream.
create or replace function postbox._backfills(group_name text)
    returns table (outbox oid, schema text, name text, upto text, upto_lsn pg_lsn, finished boolean, whole boolean)
    language sql stable
    begin atomic
        select b.outbox::oid, postbox._shown(m.schema), postbox._shown(m.name), b.upto::text, b.upto_lsn, b.finished,
            not exists (
                select from postbox.consumer_group_outbox o
                where o.group_name = b.group_name
                  and not (exists (select from postbox._marker k where k.outbox = o.outbox)
                    and exists (select from postbox.backfill f where f.group_name = o.group_name and f.outbox = o.outbox)))
        from postbox.backfill b
        left join postbox._marker m on m.outbox = b.outbox
        where b.group_name = _backfills.group_name
        order by b.outbox::oid;
    end;
comment on function postbox._backfills(text) is 'Private: rows that a group is given from the table before its slot goes on';

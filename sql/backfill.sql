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
        -- A transaction that the slot does not send was over before the slot was made, or is not visible yet although it has
        -- committed; the caller has waited for those (_wait_for_writers).
        -- A row that is there although its transaction is not visible was restored from a dump of another server.
        execute format(
            'select pg_current_snapshot(), max(o.%1$I) filter (where not pg_visible_in_snapshot(o.%2$I, pg_current_snapshot())) from %3$I.%4$I o',
            target.seq_column, target.xid_column, target.schema, target.name)
            into seam, restored_upto;
        seam_lsn := pg_current_wal_insert_lsn();
        -- The rows of an adopted table may be removed by its owner while their events still wait in the slot: all of these come.
        if queued and target.adopted then
            seam_lsn := '0/0';
        end if;
        -- What is left of an unfinished one has still to be given.
        insert into postbox.backfill as b (group_name, outbox, done, upto, upto_lsn, restored_upto, reason)
            values (_start_backfill.group_name, target.outbox, _start_backfill.done, seam, seam_lsn, restored_upto, _start_backfill.reason)
        on conflict on constraint backfill_pkey do update set
            done = case
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

-- The next stored events of a group, in the order of seq, each in a frame of its own. `after` is the last one that was read, NULL
-- for where the backfill stands.
create or replace function postbox._stored_events(group_name text, outbox oid, after bigint, rows int)
    returns table (seq bigint, frame bytea)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    backfill postbox.backfill;
    marker postbox._marker;
begin
    select * into backfill from postbox.backfill b where b.group_name = _stored_events.group_name and b.outbox = _stored_events.outbox::regclass;
    select * into marker from postbox._marker m where m.outbox = _stored_events.outbox;
    if marker.outbox is null then
        -- Dropped or let go meanwhile: what it held is gone.
        return;
    end if;
    perform postbox._require_replayable(marker.outbox, 'delivering stored events');
    return query execute format(
        'select chunk.seq, %1$s
         from (
            select o.%2$I as seq, o as stored
            from %3$I.%4$I o
            where o.%2$I > $1
              and (pg_visible_in_snapshot(o.%5$I, $2) or o.%2$I <= $5)
              and not postbox._is_done(o.%5$I, $3)
            order by o.%2$I
            limit $4
         ) chunk',
        postbox._frame_sql(marker.outbox, 'chunk.stored'), postbox._marker_column(marker.arguments, 'seq'), marker.schema, marker.name,
        postbox._marker_column(marker.arguments, 'xid'))
        using greatest(after, backfill.position), backfill.upto, backfill.done, rows, backfill.restored_upto;
end
$function$;
comment on function postbox._stored_events(text, oid, bigint, int) is 'Private: the next rows that a group is given from the table';

-- What a member has to give before, and to leave out of, the stream.
create or replace function postbox._backfills(group_name text)
    returns table (outbox oid, schema name, name name, upto text, upto_lsn pg_lsn, finished boolean)
    language sql stable
    begin atomic
        select b.outbox::oid, m.schema, m.name, b.upto::text, b.upto_lsn, b.finished
        from postbox.backfill b
        left join postbox._marker m on m.outbox = b.outbox
        where b.group_name = _backfills.group_name
        order by b.outbox::oid;
    end;
comment on function postbox._backfills(text) is 'Private: rows that a group is given from the table before its slot goes on';

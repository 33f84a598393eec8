-- Snapshots as positions. They are compared by what is visible in them; their numbers mean nothing on another timeline.

create or replace function postbox._includes(bigger pg_snapshot, smaller pg_snapshot) returns boolean
    language sql immutable strict parallel safe
    return pg_snapshot_xmax(smaller) <= pg_snapshot_xmax(bigger)
        and not exists (select from pg_snapshot_xip(bigger) as running(xid) where pg_visible_in_snapshot(running.xid, smaller));
comment on function postbox._includes(pg_snapshot, pg_snapshot) is
    'Private: whether every transaction that is visible in the smaller snapshot is visible in the bigger one too';

create or replace function postbox._is_done(xid xid8, done pg_snapshot[]) returns boolean
    language sql immutable strict parallel safe
    return cardinality(done) > 0 and not exists (select from unnest(done) as d(snapshot) where not pg_visible_in_snapshot(xid, d.snapshot));
comment on function postbox._is_done(xid8, pg_snapshot[]) is 'Private: whether a transaction is visible in all of these snapshots, of which there is at least one';

-- Which server this is. The identifier is that of the cluster and goes along with a physical copy; the timeline changes when one is promoted.
create or replace view postbox._server as
    select s.system_identifier                                               as system_identifier,
           -- The control file lags behind a promotion; the name of the segment does not.
           case when pg_is_in_recovery() then c.timeline_id
                else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end as timeline
    from pg_control_system() s, pg_control_checkpoint() c;
comment on view postbox._server is 'Private: the identity of the server, as START_REPLICATION knows it';

-- Retention asks here: a row may go when it is visible in every snapshot that any group has for its outbox.
create or replace view postbox._need as
    select o.group_name, o.outbox::oid as outbox, c.snapshot
    from postbox.consumer_group_outbox o
    left join postbox.checkpoint c on c.group_name = o.group_name
    union all
    select b.group_name, b.outbox::oid, case when cardinality(b.done) > 0 then d.snapshot end
    from postbox.backfill b
    left join unnest(b.done) as d(snapshot) on true
    where not b.finished;
comment on view postbox._need is
    'Private: what groups need of outboxes: every row that is not visible in the snapshot, all rows where it is NULL';

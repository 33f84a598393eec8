-- Samples: one about every 10 seconds while anything is written, thinned as they grow old.

-- Whether anybody else has written since a moment. The transaction that noted the moment is the one that came after it.
-- Members write checkpoints because samples were written, and the other way round; so a little does not count, as long as no
-- event can be among it: no outbox has given away a seq, and no transaction was open that could have had one.
create or replace function postbox._has_moved(since pg_snapshot, since_lsn pg_lsn, has_seq boolean) returns boolean
    language sql stable parallel safe
    return since is null
        or (pg_snapshot_xmax(pg_current_snapshot())::text::bigint <> pg_snapshot_xmax(since)::text::bigint + 1
            or array(select pg_snapshot_xip(pg_current_snapshot())) <> array(select pg_snapshot_xip(since)))
        and (has_seq
            or exists (select from pg_snapshot_xip(since))
            or case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end - since_lsn > 65536);
comment on function postbox._has_moved(pg_snapshot, pg_lsn, boolean) is
    'Private: whether transactions have written since a moment, other than the one that noted it; has_seq: an outbox has given away a seq';

-- The caller has not written yet: so its own id is not below the end of the snapshot, and when the row is on disk the server
-- cannot give away an id that the snapshot takes for finished once more, not even after a crash.
create or replace function postbox._take_sample() returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    visible constant pg_snapshot := pg_current_snapshot();
    log_end constant pg_lsn := pg_current_wal_insert_lsn();
    newest postbox.sample;
    seqs record;
    longest constant interval := (select coalesce(max(s.retention), '0') from postbox.outbox_setting s);
begin
    select * into newest from postbox.sample s order by s.taken_at desc limit 1;
    select coalesce(array_agg(r.outbox order by r.outbox), '{}') as outboxes, coalesce(array_agg(r.last_seq order by r.outbox), '{}') as last_seqs
        into seqs
        from postbox._ring r
        where r.last_seq is not null;
    if not postbox._has_moved(newest.snapshot, newest.lsn,
        (seqs.outboxes, seqs.last_seqs) is distinct from (newest.outboxes, newest.last_seqs)
            -- Retention has met a row that was committed since.
            or exists (select from postbox.leaf l where pg_visible_in_snapshot(l.waits_for, visible) and not pg_visible_in_snapshot(l.waits_for, newest.snapshot)))
    then
        return false;
    end if;
    insert into postbox.sample (taken_at, snapshot, lsn, system_identifier, timeline, outboxes, last_seqs)
        select clock_timestamp(), visible, log_end, server.system_identifier, server.timeline, seqs.outboxes, seqs.last_seqs
        from postbox._server server
    on conflict do nothing;
    -- Each of them goes by itself. Of an age band the first of each bin stays; those that a retention reaches back to, for longer.
    delete from postbox.sample s
        using (values (interval '1 hour', interval '2 days', interval '5 minutes'), ('2 days', '30 days', '1 hour'), ('30 days', null, '1 day')) as band(younger, older, bin)
        where s.taken_at < clock_timestamp() - band.younger and (band.older is null or s.taken_at >= clock_timestamp() - band.older)
          and exists (select from postbox.sample p where p.taken_at < s.taken_at and p.taken_at >= date_bin(band.bin, s.taken_at, 'epoch'));
    delete from postbox.sample s
        where s.taken_at < clock_timestamp() - greatest(interval '30 days', longest * 2)
          and exists (select from postbox.sample p where p.taken_at > s.taken_at and p.taken_at < clock_timestamp() - longest);
    return true;
end
$function$;
comment on function postbox._take_sample() is 'Private: notes what is committed, where the log is and where the outboxes are; false: nothing has moved';

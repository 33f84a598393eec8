-- Giving a group rows from the table. The seam between table and slot is a snapshot taken after the slot was made: what is
-- visible in it comes from the table, all else from the slot, and the member leaves out of the stream what is visible in it.

create or replace function postbox._start_backfill(group_name text, done pg_snapshot[], reason text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    -- A transaction that the slot does not send was over before the slot was made, or is not visible yet although it has
    -- committed; the caller has waited for those (_wait_for_writers).
    seam constant pg_snapshot := pg_current_snapshot();
    seam_lsn constant pg_lsn := pg_current_wal_insert_lsn();
begin
    -- What is left of an unfinished one has still to be given.
    insert into postbox.backfill as b (group_name, outbox, done, upto, upto_lsn, reason)
        select o.group_name, o.outbox, _start_backfill.done, seam, seam_lsn, _start_backfill.reason
        from postbox.consumer_group_outbox o
        join postbox._marker m on m.outbox = o.outbox
        where o.group_name = _start_backfill.group_name
    on conflict on constraint backfill_pkey do update set
        done = excluded.done, upto = excluded.upto, upto_lsn = excluded.upto_lsn, reason = excluded.reason,
        position = -9223372036854775808, finished = false, started_at = now();
end
$function$;
comment on function postbox._start_backfill(text, pg_snapshot[], text) is
    'Private: from here on the group is given the stored rows that are not visible in all of `done` before its slot goes on';

-- What is processed goes along the log: its entries name the messages, so nothing is searched for, and each step removes some thousand rows
-- by their key. Positions in the log are ids, and those are given away before the commit, so first of all it has to be known up to where the
-- log is complete.
--
-- What is proved has to hold when a row is removed whose id must not come in again:
-- * Its id is in inbox_seen, and committed. Receivers look there before they look into the table.
-- * Whoever looked before that may still rely on having found the row, or go by an old snapshot. So it is noted which transactions are open
--   when the id is there for everybody, and the row goes when all of these are over. Whoever began later sees the id. Rows that an old
--   snapshot sees could not be vacuumed anyway: nothing is lost by waiting for it.
-- * Whoever hands the message out again holds the keeping lock, as retention does from before it looks until it commits; and
--   leaves word in inbox_replay that earlier entries of the log are void.

-- Who may still write to the log with an id that was given away. Whoever writes there has had this lock since before.
create or replace view postbox._log_writer as
    select k.pid, k.virtualtransaction
    from pg_locks k
    where k.locktype = 'relation' and k.relation = 'postbox.inbox_log'::regclass::oid and k.granted and k.mode not in ('AccessShareLock', 'RowShareLock')
      and k.pid is distinct from pg_backend_pid() and k.database = (select d.oid from pg_database d where d.datname = current_database());
comment on view postbox._log_writer is 'Private: transactions that have written to inbox_log; without pid: prepared ones';

-- Everybody who is in a transaction, whatever it has done so far. Autovacuum, which has no user, receives nothing.
create or replace view postbox._open_transaction as
    select k.pid, k.virtualtransaction
    from pg_locks k
    join pg_stat_activity a on a.pid = k.pid
    where k.locktype = 'virtualxid' and k.granted and k.virtualxid = k.virtualtransaction and k.pid <> pg_backend_pid()
      and a.datname = current_database() and a.usesysid is not null;
comment on view postbox._open_transaction is 'Private: transactions of this database other than the own one';

-- Up to which id the log is complete.
create or replace function postbox._settled_log_id() returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    known postbox.inbox_horizon;
    given_away bigint;
    writers text[];
begin
    select * into known from postbox.inbox_horizon h where h.kind = 'log';
    -- The log first, those who write second: whoever has an id by then is among them, or has ended.
    given_away := pg_sequence_last_value('postbox.inbox_log_id_seq');
    writers := array(select w.virtualtransaction from postbox._log_writer w);
    if given_away is null or given_away = known.settled_id then
        return coalesce(known.settled_id, 0);
    end if;
    if writers = '{}' then
        known.settled_id := given_away;
    elsif known.log_id > known.settled_id and not known.waits_for && writers and not exists (select from postbox._log_writer w where w.pid is null) then
        known.settled_id := known.log_id;
    elsif known.log_id > known.settled_id then
        return known.settled_id;
    end if;
    insert into postbox.inbox_horizon as h (kind, noted_at, log_id, waits_for, settled_id)
        values ('log', clock_timestamp(), given_away, writers, coalesce(known.settled_id, 0))
        on conflict on constraint inbox_horizon_pkey do update set
            noted_at = excluded.noted_at, log_id = excluded.log_id, waits_for = excluded.waits_for, settled_id = excluded.settled_id;
    return coalesce(known.settled_id, 0);
end
$function$;
comment on function postbox._settled_log_id() is 'Private: the id up to which nobody can add entries to inbox_log any more';

-- Called before this run writes to inbox_seen: what is marked is committed.
create or replace function postbox._settle_seen() returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    known postbox.inbox_horizon;
begin
    select * into known from postbox.inbox_horizon h where h.kind = 'seen';
    if known.kind is not null then
        if exists (select from postbox._open_transaction o where o.virtualtransaction = any (known.waits_for)) then
            return;
        end if;
        update postbox.inbox_keeping k set safe_id = k.marked_id where k.safe_id < k.marked_id;
    end if;
    update postbox.inbox_keeping k set marked_id = k.seen_id where k.marked_id < k.seen_id;
    if found then
        insert into postbox.inbox_horizon as h (kind, noted_at, waits_for)
            values ('seen', clock_timestamp(), array(select o.virtualtransaction from postbox._open_transaction o))
            on conflict on constraint inbox_horizon_pkey do update set noted_at = excluded.noted_at, waits_for = excluded.waits_for;
    end if;
end
$function$;
comment on function postbox._settle_seen() is 'Private: lets retention go on where no open transaction may lack what inbox_seen has';

-- Sums up what the log has beyond what was summed up before. The result is how many entries that were.
create or replace function postbox._fold_inbox_log(box postbox.inbox, settled_id bigint, most int) returns int
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
as $function$
declare
    kept postbox.inbox_keeping;
    upto bigint;
    entries int;
    sum_of record;
begin
    select * into kept from postbox.inbox_keeping k where k.inbox = box.id;
    select max(l.id), count(*) into upto, entries
        from (
            select g.id from postbox.inbox_log g
            where g.inbox = box.id and g.id > coalesce(kept.folded_id, 0) and g.id <= settled_id
            order by g.id limit most
        ) l;
    if entries = 0 then
        return 0;
    end if;
    for sum_of in
        select g.event_type, g.what, sum(g.messages) as messages, sum(g.seconds) as seconds
        from postbox.inbox_log g
        where g.inbox = box.id and g.id > coalesce(kept.folded_id, 0) and g.id <= upto
        group by g.event_type, g.what
    loop
        update postbox.inbox_total t set messages = t.messages + sum_of.messages, seconds = t.seconds + sum_of.seconds
            where t.inbox = box.id and t.event_type is not distinct from sum_of.event_type and t.what = sum_of.what;
        if not found then
            insert into postbox.inbox_total (inbox, event_type, what, messages, seconds)
                values (box.id, sum_of.event_type, sum_of.what, sum_of.messages, sum_of.seconds);
        end if;
    end loop;
    insert into postbox.inbox_keeping as k (inbox, folded_id, folded_at) values (box.id, upto, clock_timestamp())
        on conflict on constraint inbox_keeping_pkey do update set folded_id = excluded.folded_id, folded_at = excluded.folded_at;
    return entries;
end
$function$;
comment on function postbox._fold_inbox_log(postbox.inbox, bigint, int) is 'Private: adds entries of the log to the totals';

-- Tells of up to `most` dead letters of which nobody was told yet. Each says so itself: the log is complete only as far as no open transaction has
-- written to it, and an alert must not wait for that. The result is how many they are.
create or replace function postbox._alert_dead(box postbox.inbox, most int) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    most_alerts constant int := 10;
    died record;
begin
    for died in
        with told as (
            update postbox.inbox_dead d set told_at = clock_timestamp()
                where d.inbox = box.id and d.event_id in (
                    select u.event_id from postbox.inbox_dead u where u.inbox = box.id and u.told_at is null order by u.died_at limit most for update skip locked)
                returning d.*
        )
        select t.*, row_number() over (order by t.died_at, t.event_id) as n, count(*) over () as total from told t order by t.died_at, t.event_id limit most_alerts + 1
    loop
        perform postbox._alert('inbox_dlq_message', box.name, case when died.n > most_alerts then jsonb_build_object('more', died.total - most_alerts)
            else jsonb_build_object('event_id', died.event_id, 'event_type', died.event_type, 'died_at', died.died_at, 'why', died.why,
                'error', left(died.error, 1000), 'attempts', died.attempts) end);
    end loop;
    return coalesce(died.total, 0);
end
$function$;
comment on function postbox._alert_dead(postbox.inbox, int) is 'Private: alerts of dead letters';

-- What inboxes hold that is too much to count at every look: counted here, but for no more than a fiftieth of the time.
create or replace function postbox._sample_inbox(box postbox.inbox) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    began constant timestamptz := clock_timestamp();
    newest postbox.inbox_sample;
    in_lanes bigint;
    -- Messages of lanes are looked up in the table for their types: some of them stand for all.
    most_looked_up constant int := 20000;
begin
    select * into newest from postbox.inbox_sample s where s.inbox = box.id limit 1;
    if began < newest.taken_at + greatest(newest.took * 50, interval '10 seconds') then
        return false;
    end if;
    if (postbox._count_inbox(box, 500)).is_all then
        delete from postbox.inbox_sample s where s.inbox = box.id;
        return false;
    end if;
    delete from postbox.inbox_sample s where s.inbox = box.id;
    in_lanes := (select coalesce(sum(postbox._lane_size(l.arrived, l.head)), 0) from postbox._pending_lane l where l.inbox = box.id);
    execute format(
        'with looked_up as materialized (%s)
         insert into postbox.inbox_sample (inbox, event_type, pending, leased, delayed, dead, taken_at, took)
         select $1, c.event_type, sum(c.pending), sum(c.leased), sum(c.delayed), sum(c.dead), $3, ''0''
         from (
             %s
             union all
             select l.event_type, ($4 * count(*) filter (where not l.is_parked) / (select count(*) from looked_up))::bigint, 0, 0,
                 ($4 * count(*) filter (where l.is_parked) / (select count(*) from looked_up))::bigint
             from looked_up l group by l.event_type
             union all
             select n.event_type, 0, 0, count(*), 0 from (%s) n where n.due > clock_timestamp() and n.ready_at <= clock_timestamp() group by n.event_type
             union all
             select d.event_type, 0, 0, 0, count(*) from postbox.inbox_dead d where d.inbox = $1 group by d.event_type
         ) c
         group by c.event_type',
        case when box.ordered_at is null then 'select null::text as event_type, false as is_parked where false'
            else postbox._lane_types_sql(box) end,
        case when box.style = 'update' then format(
            'select p.event_type, count(*) as pending, 0::bigint as leased, count(*) filter (where p.state = ''delayed'') as delayed, 0::bigint as dead
             from %s p group by p.event_type', postbox._inbox_view(box, 'pending_' || box.name))
        else
            'select b.event_type, sum(cardinality(b.event_ids)) as pending, coalesce(sum(cardinality(b.event_ids)) filter (where b.token is not null), 0) as leased,
                 coalesce(sum(cardinality(b.event_ids)) filter (where b.token is null and b.ready_at > clock_timestamp()), 0) as delayed, 0::bigint as dead
             from postbox._pending_batch b where b.inbox = $1 and b.tier > -32768 group by b.event_type'
        end,
        coalesce(postbox._noted_due_sql(box, -32767, -1, most_looked_up), 'select null::text as event_type, now() as ready_at, now() as due where false'))
        using box.id, most_looked_up, began, in_lanes;
    update postbox.inbox_sample s set took = clock_timestamp() - began where s.inbox = box.id;
    return true;
end
$function$;
comment on function postbox._sample_inbox(postbox.inbox) is 'Private: counts what a large inbox holds; false: it is not large, or was counted lately';

-- Entries of the log whose messages have been kept for long enough: about `most` of their messages, in the order of the log.
create or replace function postbox._expired_entries(box postbox.inbox, from_id bigint, upto_id bigint, most int, out last_id bigint, out ids text[], out entries bigint[], out ats timestamptz[])
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_sort = off
as $function$
declare
    entry record;
begin
    for entry in
        select g.id, g.what, g.at, g.event_ids from postbox.inbox_log g
        where g.inbox = box.id and g.id > from_id and g.id <= upto_id
        order by g.id
        limit 20000
    loop
        if entry.what in ('processed', 'discarded') then
            exit when entry.at > clock_timestamp() - box.retention or cardinality(ids) >= most;
            ids := ids || entry.event_ids;
            entries := entries || array_fill(entry.id, array[cardinality(entry.event_ids)]);
            ats := ats || array_fill(entry.at, array[cardinality(entry.event_ids)]);
        end if;
        last_id := entry.id;
    end loop;
end
$function$;
comment on function postbox._expired_entries(postbox.inbox, bigint, bigint, int) is 'Private: the next messages that retention removes, with the entries of the log that name them';

-- Notes ids that must not come in again when their rows are gone.
create or replace function postbox._note_seen(box postbox.inbox, most int, out noted int, out has_more boolean)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    kept postbox.inbox_keeping;
    expired record;
    leaf int := (select l.generation from postbox.inbox_seen_leaf l where l.takes_rows);
begin
    noted := 0;
    has_more := false;
    select * into kept from postbox.inbox_keeping k where k.inbox = box.id;
    expired := postbox._expired_entries(box, greatest(kept.seen_id, kept.removed_id), kept.folded_id, most);
    if expired.last_id is null then
        return;
    end if;
    insert into postbox.inbox_seen as s (generation, inbox, event_id, until)
        select leaf, box.id, u.id, max(u.at) + box.dedup_window from unnest(expired.ids, expired.ats) as u(id, at) group by u.id
        on conflict on constraint inbox_seen_pkey do update set until = greatest(s.until, excluded.until);
    update postbox.inbox_keeping k set seen_id = expired.last_id where k.inbox = box.id;
    if cardinality(expired.ids) > 0 then
        update postbox.inbox_seen_leaf l
            set since = coalesce(l.since, clock_timestamp()),
                until = greatest(l.until, (select max(u.at) + box.dedup_window from unnest(expired.ats) as u(at)))
            where l.generation = leaf;
        noted := cardinality(expired.ids);
        has_more := noted >= most;
    end if;
end
$function$;
comment on function postbox._note_seen(postbox.inbox, int) is 'Private: the first half of the removal of messages whose ids outlive them';

create or replace function postbox._remove_processed(box postbox.inbox, most int, out removed bigint, out has_more boolean)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    -- A policy that hides rows from us would have us pass them over for ever: an error instead.
    set row_security = off
as $function$
declare
    kept postbox.inbox_keeping;
    expired record;
begin
    removed := 0;
    has_more := false;
    select * into kept from postbox.inbox_keeping k where k.inbox = box.id;
    expired := postbox._expired_entries(box, kept.removed_id, case when box.dedup_window > box.retention then kept.safe_id else kept.folded_id end, most);
    if expired.last_id is null then
        return;
    end if;
    -- In style update what waits is what the table says, and workers may make it wait again.
    execute format(
        'delete from %s r using unnest($1, $2) as u(id, entry)
         where r.%I = u.id::%s and not exists (select from postbox.inbox_replay p where p.inbox = $3 and p.event_id = u.id and p.log_id > u.entry)%s',
        box.relation, box.columns ->> 'event_id', postbox._inbox_type(box, 'event_id'),
        case when box.style = 'update' then format(' and (r.%I is not null or coalesce(%s, 0) > %s)', box.columns ->> 'processed_at',
            postbox._inbox_column(box.columns, 'retry_count', 'r', 'int'), box.max_retries) end)
        using expired.ids, expired.entries, box.id;
    get diagnostics removed = row_count;
    delete from postbox.inbox_replay p where p.inbox = box.id and p.log_id <= expired.last_id;
    update postbox.inbox_keeping k set removed_id = expired.last_id where k.inbox = box.id;
    has_more := cardinality(expired.ids) >= most;
end
$function$;
comment on function postbox._remove_processed(postbox.inbox, int) is 'Private: removes messages that were kept for long enough';

-- Dead letters that nobody has cared for. One that an aggregate waits for stays: letting it go would have the others overtake.
create or replace function postbox._expire_dead(box postbox.inbox, most int) returns int
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
as $function$
declare
    ids text[];
begin
    if box.dead_retention is null then
        return 0;
    end if;
    ids := array(
        select d.event_id from postbox.inbox_dead d
        where d.inbox = box.id and d.died_at < clock_timestamp() - box.dead_retention
          and not exists (select from postbox.inbox_lane l where l.inbox = box.id and l.blocked is not null and l.key = d.aggregate_id and l.head = d.event_id)
        order by d.died_at limit most);
    if ids <> '{}' then
        perform postbox._discard_dead(box, ids);
        perform postbox._note_replay(box, 'inbox_expire', ids, jsonb_build_object('older_than', box.dead_retention));
    end if;
    return cardinality(ids);
end
$function$;
comment on function postbox._expire_dead(postbox.inbox, int) is 'Private: discards dead letters that were kept for long enough';

-- Why rows that may go are there still: what refuses it, or for whom is waited.
create or replace function postbox._removal_waits_for(box postbox.inbox) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select case
            when k.failure is not null then k.failure
            when k.safe_id < k.marked_id then (
                select format('process %s (%s), in a transaction since before %s', o.pid, coalesce(nullif(a.application_name, ''), 'unnamed'), h.noted_at)
                from postbox.inbox_horizon h
                join postbox._open_transaction o on o.virtualtransaction = any (h.waits_for)
                join pg_stat_activity a on a.pid = o.pid
                where h.kind = 'seen'
                order by o.pid
                limit 1)
            else (
                select coalesce(format('process %s, which has written to the log of inboxes and not ended', w.pid), 'a prepared transaction that has written to the log of inboxes')
                from postbox.inbox_horizon h
                join postbox._log_writer w on w.virtualtransaction = any (h.waits_for) or w.pid is null
                where h.kind = 'log' and h.settled_id < h.log_id and h.noted_at < clock_timestamp() - interval '30 seconds'
                limit 1)
            end
        from (values ((box).id)) as wanted(inbox)
        left join postbox.inbox_keeping k on k.inbox = wanted.inbox;
    end;
comment on function postbox._removal_waits_for(postbox.inbox) is 'Private: what keeps retention from going on, as a person reads it';

-- The ring of the log. As in the rings of outboxes the sequence is moved, whole rounds of four leaves ahead: on to the next leaf when the first
-- row of the present one is half as old as anybody needs it and the next one is empty, or back to the present leaf when half of its ids are used up
-- before that. Nobody who takes ids meanwhile can be overtaken: the distance is 2^32.
create or replace function postbox._turn_inbox_log(out outcome text, out detail text)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    last_id constant bigint := pg_sequence_last_value('postbox.inbox_log_id_seq');
    generation constant bigint := (last_id + 1) >> 20;
    present constant text := format('postbox.inbox_log_g%s', generation & 3);
    longest constant interval := (select max(i.retention) from postbox.inbox i);
    is_old boolean;
    next_is_empty boolean;
    half_used boolean;
    steps bigint;
begin
    outcome := 'nothing';
    if last_id is null or pg_relation_size(present::regclass) = 0 then
        return;
    end if;
    execute format('select exists (select from only %s l where l.ctid < ''(1,0)'' and l.at < $1)', present)
        into is_old using clock_timestamp() - greatest(longest, interval '1 hour') / 2;
    next_is_empty := pg_relation_size(format('postbox.inbox_log_g%s', (generation + 1) & 3)::regclass) = 0;
    half_used := (last_id + 1) & ((1 << 20) - 1) > 1 << 19;
    if is_old and next_is_empty then
        steps := 1;
        outcome := 'advanced';
    elsif half_used then
        steps := 0;
        outcome := 'kept';
    end if;
    if is_old and not next_is_empty then
        detail := 'the next leaf is not empty';
        outcome := coalesce(nullif(outcome, 'nothing'), 'blocked');
    end if;
    if steps is null then
        return;
    end if;
    if generation + 4097 >= 9223372036854775807 >> 20 then
        outcome := 'skipped';
        detail := format('the sequence is at %s and cannot be moved on', last_id);
        return;
    end if;
    perform setval('postbox.inbox_log_id_seq', ((generation + 4096 + steps) << 20) - 1);
end
$function$;
comment on function postbox._turn_inbox_log() is 'Private: lets the next leaf of the log take rows, or the present one for longer';

-- Whether some inbox needs a row of a leaf still.
create or replace function postbox._needs_log_leaf(leaf text) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
as $function$
declare
    needed boolean;
begin
    execute format(
        'select exists (
            select from postbox.inbox i
            left join postbox.inbox_keeping k on k.inbox = i.id
            where exists (select from only %s l where l.inbox = i.id and l.id > coalesce(least(k.folded_id, k.removed_id), 0)))', leaf)
        into needed;
    return needed;
end
$function$;
comment on function postbox._needs_log_leaf(text) is 'Private: whether a row of a leaf of the log is not summed up, or names a message that is to be removed';

-- Truncates a leaf of the log that nobody needs. Whoever has written there and is not over holds a lock; who writes now has another leaf.
create or replace function postbox._empty_inbox_log(out outcome text, out detail text)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    last_id constant bigint := pg_sequence_last_value('postbox.inbox_log_id_seq');
    leaf text;
begin
    outcome := 'nothing';
    for distance in 1 .. 3 loop
        leaf := format('postbox.inbox_log_g%s', (((last_id + 1) >> 20) + distance) & 3);
        continue when last_id is null or pg_relation_size(leaf::regclass) = 0 or postbox._needs_log_leaf(leaf);
        begin
            execute format('lock table only %s in access exclusive mode', leaf);
            if postbox._needs_log_leaf(leaf) then
                raise exception using errcode = 'lock_not_available', message = 'a row has come meanwhile', hint = 'It is emptied when nobody needs it.';
            end if;
            execute format('truncate table only %s', leaf);
            outcome := 'emptied';
            detail := leaf;
            return;
        exception when lock_not_available or deadlock_detected then
            outcome := 'busy';
            detail := format('%s: %s', leaf, sqlerrm);
        end;
    end loop;
end
$function$;
comment on function postbox._empty_inbox_log() is 'Private: empties at most one leaf of the log';

-- The ring of ids: the next leaf takes rows when the present one has done so for half as long as ids are kept and the next one is empty. One
-- that holds nothing but what is over is emptied. Receivers read all leaves, so nobody is to queue behind us for long.
create or replace function postbox._turn_seen(out outcome text, out detail text)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '20ms'
as $function$
declare
    longest constant interval := (select max(i.dedup_window - i.retention) from postbox.inbox i);
    present postbox.inbox_seen_leaf;
    over postbox.inbox_seen_leaf;
begin
    outcome := 'nothing';
    select * into present from postbox.inbox_seen_leaf l where l.takes_rows;
    if present.since < clock_timestamp() - longest / 2
        and exists (select from postbox.inbox_seen_leaf l where l.generation = (present.generation + 1) % 3 and l.until is null) then
        update postbox.inbox_seen_leaf l set takes_rows = l.generation = (present.generation + 1) % 3
            where l.generation in (present.generation, (present.generation + 1) % 3);
        outcome := 'advanced';
    end if;
    select * into over from postbox.inbox_seen_leaf l where not l.takes_rows and l.until < clock_timestamp() order by l.until limit 1;
    if not found then
        return;
    end if;
    begin
        execute format('truncate table only postbox.inbox_seen_g%s', over.generation);
        update postbox.inbox_seen_leaf l set since = null, until = null where l.generation = over.generation;
        outcome := 'emptied';
        detail := format('postbox.inbox_seen_g%s', over.generation);
    exception when lock_not_available or deadlock_detected then
        outcome := 'busy';
        detail := format('postbox.inbox_seen_g%s: %s', over.generation, sqlerrm);
    end;
end
$function$;
comment on function postbox._turn_seen() is 'Private: lets the next leaf of inbox_seen take rows, and empties one that nobody needs';

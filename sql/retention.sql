-- Retention empties one leaf of a ring at a time, when nobody needs any row of it: each is visible in the checkpoint of every
-- group that reads the outbox, and in a sample that is older than the retention. Both are snapshots: a row goes by the
-- transaction that wrote it, never by its seq, as a transaction may commit long after it got one.
--
-- What is proved has to hold when the leaf is emptied:
-- * A late row. Any transaction may insert into any leaf at any time, also one that got its seq generations ago. So rows are
--   looked at under a SHARE lock of the leaf, which is only had when no transaction has written there without being over, and
--   lets none begin to. A snapshot taken under it sees every row that will ever have been there. Readers are not held up.
-- * A publisher that wants this leaf meanwhile waits, at most for one chunk of the scan: then we give up. Those who publish
--   now use another leaf. Nobody queues behind us for longer than lock_timeout, which maintain() sets.
-- * A new need. Only starting at earliest, seek and recover make a group need more than before, and who does that holds the
--   outbox's lock (_lock_key), as we do from before we look at the needs until we commit.
-- * ACCESS EXCLUSIVE comes last, for TRUNCATE alone: two that wait for each other are parted by lock_timeout.
-- * Claims of an outbox (claim_check.sql) are written by the transaction of their event, so what holds for the event holds for
--   them. Their leaf is locked as well: a transaction that has written a claim, and not its event yet, holds it.
-- * A slot that lags still has the rows: they come from the WAL, and decoding takes no heed of TRUNCATE.

-- Every row that may go is visible in all of these; NULL: every row is needed, or who needs it cannot be told.
create or replace function postbox._required(outbox oid, out snapshots pg_snapshot[], out reason text)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    kept_for constant interval := (postbox._retention(outbox)).retention;
    moment constant postbox.sample := postbox._moment_before(kept_for);
begin
    -- Rows and transaction ids of a copy go on from those of the original; a dump has the numbers of another server.
    select format('consumer group %s belongs to another server: recover or drop it', string_agg(g.name, ', ' order by g.name)) into reason
        from postbox.consumer_group g
        join postbox.consumer_group_outbox o on o.group_name = g.name
        cross join postbox._server server
        where o.outbox = _required.outbox and g.system_identifier <> server.system_identifier
        having count(*) > 0;
    if reason is null then
        select format('consumer group %s needs every row', string_agg(distinct n.group_name, ', ')) into reason
            from postbox._need n
            where n.outbox = _required.outbox and n.snapshot is null
            having count(*) > 0;
    end if;
    if reason is null and moment.snapshot is null then
        reason := format('retention of %s: no sample is that old', kept_for);
    end if;
    if reason is null then
        snapshots := moment.snapshot || array(select n.snapshot from postbox._need n where n.outbox = _required.outbox);
    end if;
end
$function$;
comment on function postbox._required(oid) is 'Private: the snapshots in which a row must be visible to be removed, or why none may go';

-- Of snapshots taken on one server the one taken first: it is included in every other one.
create or replace function postbox._earliest(snapshots pg_snapshot[]) returns pg_snapshot
    language sql immutable strict parallel safe
    return (
        select s.snapshot
        from unnest(snapshots) as s(snapshot)
        where not exists (select from unnest(snapshots) as t(snapshot) where not postbox._includes(t.snapshot, s.snapshot))
        limit 1
    );
comment on function postbox._earliest(pg_snapshot[]) is 'Private: the snapshot that all of these include; NULL if none is';

-- Of a leaf whose owner has changed the types since it was taken for one, or given its name to another table, his functions would be called: as
-- whoever maintains it.
create or replace function postbox._hold_leaf(leaf oid, leaf_name text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    execute format('lock table only %s in access share mode', leaf_name);
    if to_regclass(leaf_name)::oid is distinct from leaf
        or not exists (select from pg_attribute a where a.attrelid = leaf and a.attname = 'xid' and a.atttypid = 'xid8'::regtype and not a.attisdropped)
    then
        raise exception using errcode = 'wrong_object_type',
            message = format('%s is no leaf of an outbox any more', leaf_name),
            hint = 'The outboxes that postbox.create_outbox makes have a column xid of type xid8: give it back, or let the table go with postbox.drop_outbox.';
    end if;
end
$function$;
comment on function postbox._hold_leaf(oid, text) is 'Private: looks that a leaf is one, which it stays until the commit';

-- Some transaction in a range of a leaf that is not visible in all of the snapshots, and how many rows there are. A row
-- without xid counts as one that nobody has seen.
create or replace function postbox._probe(leaf oid, leaf_name text, from_block bigint, to_block bigint, snapshots pg_snapshot[], out rows bigint, out needed bigint, out waits_for xid8)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    -- A policy that hides rows from us would have us remove what we cannot see: an error instead.
    set row_security = off
as $function$
declare
    -- Whatever is older is visible in all of them.
    oldest constant xid8 := (select x from unnest(snapshots) as s(snapshot), pg_snapshot_xmin(s.snapshot) as x order by x limit 1);
begin
    perform postbox._hold_leaf(leaf, leaf_name);
    execute format(
        'select count(*), count(*) filter (where bad), (array_agg(xid order by xid desc nulls last) filter (where bad))[1]
         from (
            select l.xid, (l.xid < $1) is not true
                and (l.xid is null or exists (select from unnest($2) as s(snapshot) where not pg_visible_in_snapshot(l.xid, s.snapshot))) as bad
            from only %s l
            where l.ctid >= $3 and l.ctid < $4
         ) looked_at', leaf_name)
        into rows, needed, waits_for
        using oldest, snapshots, format('(%s,0)', from_block)::tid, format('(%s,0)', least(to_block, 4294967295))::tid;
end
$function$;
comment on function postbox._probe(oid, text, bigint, bigint, pg_snapshot[]) is 'Private: looks for rows that are needed in some blocks of a leaf';

-- Empties a leaf if it may. The outcome is emptied, pinned (a row is needed) or busy (somebody has it locked).
create or replace function postbox._empty_leaf(
    outbox oid, leaf oid, leaf_name text, claims_leaf oid, claims_leaf_name text, snapshots pg_snapshot[],
    out outcome text, out rows bigint, out waits_for xid8, out reason text
)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    chunk constant bigint := 4096;
    blocks bigint;
    found_rows record;
    block bigint := 0;
begin
    -- Cheap looks first, so that nothing is locked in vain: at the transaction that stood against it the last time, and at the
    -- last page, where the youngest rows are.
    select l.waits_for into waits_for from postbox.leaf l where l.leaf = _empty_leaf.leaf;
    if exists (select from unnest(snapshots) as s(snapshot) where not pg_visible_in_snapshot(waits_for, s.snapshot)) then
        outcome := 'pinned';
        return;
    end if;
    blocks := pg_relation_size(leaf) / current_setting('block_size')::bigint;
    found_rows := postbox._probe(leaf, leaf_name, greatest(blocks - 1, 0), 4294967295, snapshots);
    if found_rows.needed > 0 then
        outcome := 'pinned';
        waits_for := found_rows.waits_for;
        return;
    end if;
    rows := 0;
    begin
        -- First, as publishers write the claim first and then its event.
        if claims_leaf is not null then
            execute format('lock table only %s in share mode', claims_leaf_name);
            if to_regclass(claims_leaf_name)::oid is distinct from claims_leaf then
                raise exception using errcode = 'lock_not_available', message = 'the claims have another name by now', hint = 'The next run tries again.';
            end if;
        end if;
        execute format('lock table only %s in share mode', leaf_name);
        -- The ring may have gone on into it meanwhile.
        if exists (select from postbox._leaf l where l.leaf = _empty_leaf.leaf and l.distance = 0) then
            raise exception using errcode = 'lock_not_available', message = 'the ring has come to this leaf',
                hint = 'It is emptied in its next turn.';
        end if;
        -- It cannot grow any more, so the last chunk is the last.
        blocks := pg_relation_size(leaf) / current_setting('block_size')::bigint;
        while block < blocks loop
            found_rows := postbox._probe(leaf, leaf_name, block, block + chunk, snapshots);
            if found_rows.needed > 0 then
                raise exception using errcode = 'object_in_use', message = 'a row is needed', detail = coalesce(found_rows.waits_for::text, ''),
                    hint = 'It is emptied once nobody needs it.';
            end if;
            rows := rows + found_rows.rows;
            block := block + chunk;
            if exists (select from pg_locks k where k.relation in (_empty_leaf.leaf, _empty_leaf.claims_leaf) and k.locktype = 'relation' and not k.granted
                          and k.database = (select d.oid from pg_database d where d.datname = current_database())) then
                raise exception using errcode = 'lock_not_available', message = 'somebody waits to write to it',
                    hint = 'The next run tries again.';
            end if;
        end loop;
        if claims_leaf is not null then
            execute format('lock table only %s in access exclusive mode', claims_leaf_name);
        end if;
        execute format('lock table only %s in access exclusive mode', leaf_name);
        execute format('truncate table only %s%s', leaf_name, ', only ' || claims_leaf_name);
        outcome := 'emptied';
    exception
        -- The subtransaction's locks are gone by now.
        when lock_not_available then
            outcome := 'busy';
            reason := sqlerrm;
        when object_in_use then
            if sqlerrm <> 'a row is needed' then
                raise;
            end if;
            outcome := 'pinned';
            waits_for := found_rows.waits_for;
    end;
end
$function$;
comment on function postbox._empty_leaf(oid, oid, text, oid, text, pg_snapshot[]) is 'Private: truncates a leaf if no row of it is needed any more';

create or replace function postbox._note_removed(outbox oid, snapshots pg_snapshot[], rows bigint, up_to pg_lsn default null) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    -- All that was removed is visible in each of them. The earliest leaves the most starts open; those of different servers
    -- may have none, then it is everything up to the latest.
    bound pg_snapshot := coalesce(postbox._earliest(snapshots), (
        select format('%1$s:%1$s:', x)::pg_snapshot from unnest(snapshots) as s(snapshot), pg_snapshot_xmax(s.snapshot) as x order by x desc limit 1));
    known pg_snapshot := (select r.snapshot from postbox.removed r where r.outbox = _note_removed.outbox::regclass);
    bound_lsn pg_lsn := up_to;
begin
    if up_to is null then
        select least(
            (select c.lsn from postbox.checkpoint c where c.snapshot::text = bound::text limit 1),
            (postbox._moment_before((postbox._retention(outbox)).retention)).lsn) into bound_lsn;
    end if;
    if known is not null and not postbox._includes(bound, known) then
        bound := case when postbox._includes(known, bound) then known
            else format('%1$s:%1$s:', greatest(pg_snapshot_xmax(bound)::text::bigint, pg_snapshot_xmax(known)::text::bigint))::pg_snapshot end;
    end if;
    insert into postbox.removed as r (outbox, snapshot, lsn, at, rows, leaves)
        values (_note_removed.outbox::regclass, bound, bound_lsn, clock_timestamp(), _note_removed.rows, 1)
    on conflict on constraint removed_pkey do update set
        snapshot = excluded.snapshot, lsn = greatest(r.lsn, excluded.lsn), at = excluded.at, rows = r.rows + excluded.rows, leaves = r.leaves + 1;
end
$function$;
comment on function postbox._note_removed(oid, pg_snapshot[], bigint, pg_lsn) is 'Private: keeps postbox.removed up to date';

create or replace function postbox._note_leaf(leaf oid, outbox oid, waits_for xid8, reason text) returns void
    language sql volatile
    begin atomic
        -- Not written again when nothing has changed.
        insert into postbox.leaf as l (leaf, outbox, waits_for, reason, noted_at)
            values (leaf, outbox, waits_for, reason, clock_timestamp())
        on conflict on constraint leaf_pkey do update set
            waits_for = excluded.waits_for, reason = excluded.reason, noted_at = excluded.noted_at
        where (l.waits_for, l.reason) is distinct from (excluded.waits_for, excluded.reason);
    end;
comment on function postbox._note_leaf(oid, oid, xid8, text) is 'Private: why a leaf could not be emptied';

-- One leaf of an outbox, the oldest that may go.
create or replace function postbox._retain(outbox oid, out outcome text, out detail text)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    ring postbox._ring;
    required record;
    candidate record;
    emptied record;
    about_to_wrap boolean;
begin
    select * into ring from postbox._ring r where r.outbox = _retain.outbox;
    if ring.generation_bits is null then
        outcome := 'skipped';
        detail := 'an adopted table, whose rows are its owner''s to remove';
        return;
    end if;
    if ring.last_seq is null then
        if not has_sequence_privilege(ring.sequence, 'usage, select') then
            raise exception using errcode = 'insufficient_privilege', message = format('permission denied for sequence %s', ring.sequence::regclass),
                hint = 'postbox.grant_role(''maintainer'', ..., ''{outbox}'') grants what maintenance needs.';
        end if;
        outcome := 'nothing';
        return;
    end if;
    if not exists (select from postbox._leaf l where l.outbox = _retain.outbox and l.distance > 0 and l.heap_bytes > 0) then
        outcome := 'nothing';
        return;
    end if;
    -- Whoever starts a group or moves it back is waited for by the next run.
    if not pg_try_advisory_xact_lock(postbox._lock_key(outbox)) then
        outcome := 'skipped';
        detail := 'somebody is making or moving a group on it, or dropping it';
        return;
    end if;
    required := postbox._required(outbox);
    outcome := 'pinned';
    -- When the next leaf begins to take rows any moment now, publishers shall not find it locked.
    about_to_wrap := ((ring.last_seq + 1) & ((1::bigint << ring.generation_bits) - 1)) > (1::bigint << ring.generation_bits) / 16 * 15;
    for candidate in
        select l.* from postbox._leaf l where l.outbox = _retain.outbox and l.distance > 0 and l.heap_bytes > 0 order by l.distance
    loop
        if required.snapshots is null then
            perform postbox._note_leaf(candidate.leaf, outbox, null, required.reason);
            detail := required.reason;
            continue;
        end if;
        continue when candidate.distance = 1 and about_to_wrap;
        emptied := postbox._empty_leaf(outbox, candidate.leaf, candidate.leaf_name, candidate.claims_leaf, candidate.claims_leaf_name, required.snapshots);
        if emptied.outcome = 'emptied' then
            perform postbox._note_removed(outbox, required.snapshots, emptied.rows);
            delete from postbox.leaf l where l.leaf = candidate.leaf;
            insert into postbox.audit (action, subject, detail)
                values ('truncate', ring.outbox_name, jsonb_strip_nulls(jsonb_build_object('leaf', candidate.leaf_name, 'rows', emptied.rows, 'claims', candidate.claims_leaf_name)));
            outcome := 'emptied';
            detail := format('%s with %s rows', candidate.leaf_name, emptied.rows);
            return;
        end if;
        if emptied.outcome = 'pinned' and emptied.waits_for is null then
            emptied.reason := 'a row has no xid';
        end if;
        perform postbox._note_leaf(candidate.leaf, outbox, case when emptied.outcome = 'pinned' then emptied.waits_for end, emptied.reason);
        detail := format('%s: %s', candidate.leaf_name, coalesce(emptied.reason, format('transaction %s is needed', emptied.waits_for)));
    end loop;
end
$function$;
comment on function postbox._retain(oid) is 'Private: empties at most one leaf of an outbox';

-- Which leaf takes rows is a matter of time: half of the retention each, so that three full leaves reach further back than
-- the retention and the oldest can be emptied before it is wanted again. Left to itself the sequence goes on to the next leaf
-- by volume, whatever that one still holds; a busy outbox would come round before anything is old enough, and mix old and
-- young rows in every leaf for ever. So the sequence is moved: on to the next leaf when the present one is old enough and that
-- one empty; or over the other leaves back to the present one when half of its generation is used up before that.
--
-- setval beside nextval may not move the sequence backwards, and ALTER SEQUENCE, which could see to that, would wait for every
-- publisher. The way out is distance: the new value lies at least 2^32 ahead, more than publishers can take between the
-- reading of the sequence and the setval a few lines further. A bigint has room for two thousand million such moves.
create or replace function postbox._advance(outbox oid, out outcome text, out detail text)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set row_security = off
as $function$
declare
    ring postbox._ring;
    present record;
    moment postbox.sample;
    is_old boolean := false;
    next_is_empty boolean;
    generation bigint;
    half_used boolean;
    steps bigint;
begin
    outcome := 'nothing';
    select * into ring from postbox._ring r where r.outbox = _advance.outbox;
    if ring.generation_bits is null or ring.last_seq is null then
        return;
    end if;
    select l.leaf, l.leaf_name, l.heap_bytes into present from postbox._leaf l where l.outbox = _advance.outbox and l.distance = 0;
    next_is_empty := (select l.heap_bytes = 0 from postbox._leaf l where l.outbox = _advance.outbox and l.distance = 1);
    if present.heap_bytes is null or next_is_empty is null then
        outcome := 'skipped';
        detail := 'a leaf of the ring is missing';
        return;
    end if;
    generation := (ring.last_seq + 1) >> ring.generation_bits;
    half_used := ring.last_seq + 1 - (generation << ring.generation_bits) > (1::bigint << ring.generation_bits) / 2;
    moment := postbox._moment_before((postbox._retention(outbox)).retention / 2);
    if moment.snapshot is not null and present.heap_bytes > 0 then
        perform postbox._hold_leaf(present.leaf, present.leaf_name);
        -- The first page has the first rows.
        execute format('select exists (select from only %s l where l.ctid < ''(1,0)'' and pg_visible_in_snapshot(l.xid, $1))', present.leaf_name)
            into is_old using moment.snapshot;
    end if;
    if is_old and next_is_empty then
        steps := 1;
        outcome := 'advanced';
    elsif half_used and present.heap_bytes > 0 then
        steps := 0;
        outcome := 'kept';
    end if;
    if is_old and not next_is_empty then
        detail := 'the next leaf is not empty';
        if steps is null then
            outcome := 'blocked';
        end if;
    end if;
    if steps is null then
        return;
    end if;
    -- Whole rounds of four generations, of 2^32 values or more.
    steps := steps + greatest(4::bigint, 4294967296 >> ring.generation_bits);
    if generation + steps >= 9223372036854775807 >> ring.generation_bits then
        outcome := 'skipped';
        detail := format('the sequence is at %s and cannot be moved on', ring.last_seq);
        return;
    end if;
    perform setval(ring.sequence, ((generation + steps) << ring.generation_bits) - 1);
    insert into postbox.ring_move (outbox, moved_at, from_seq, to_seq)
        values (_advance.outbox, clock_timestamp(), ring.last_seq, ((generation + steps) << ring.generation_bits) - 1);
    delete from postbox.ring_move m where m.moved_at < clock_timestamp() - interval '31 days';
end
$function$;
comment on function postbox._advance(oid) is 'Private: lets the next leaf take rows, or the present one for longer';

-- The floor of a queue: where claims begin to look, so that they do not pass what is gone but not vacuumed. It rises with the queue, and
-- stays behind by as long as a transaction may take from an arrival to its commit. What becomes visible later than that below the floor is
-- found by a claim that finds nothing else, and by maintenance.

-- The floor rises to what is visible now, or to what was sure to be visible when it rose before.
create or replace function postbox._raise_floors(inbox int, tiers smallint[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    slot smallint;
    floor timestamptz;
    moved_at timestamptz;
    oldest timestamptz;
begin
    foreach slot in array tiers loop
        select f.ready_at, f.at into floor, moved_at
            from postbox.inbox_floor f
            where f.inbox = _raise_floors.inbox and f.kind = 'batch' and f.tier = slot
            order by f.at desc limit 1;
        continue when moved_at > clock_timestamp() - interval '0.5 seconds';
        floor := coalesce(floor, '-infinity');
        select b.ready_at into oldest from postbox.inbox_batch b
            where b.inbox = _raise_floors.inbox and b.tier = slot and b.token is null and b.crashes < 2 and b.ready_at >= floor
            order by b.ready_at limit 1;
        insert into postbox.inbox_floor (inbox, kind, tier, at, ready_at)
            values (_raise_floors.inbox, 'batch', slot, clock_timestamp(), greatest(floor, least(oldest, coalesce(moved_at, '-infinity') - interval '1 second')));
    end loop;
end
$function$;
comment on function postbox._raise_floors(int, smallint[]) is 'Private: lets claims begin to look later, twice a second at most';

-- For a message that comes back to where it was.
create or replace function postbox._lower_floor(inbox int, kind text, tier smallint, ready_at timestamptz) returns void
    language sql volatile
    set search_path = pg_catalog, pg_temp
    begin atomic
        insert into postbox.inbox_floor (inbox, kind, tier, at, ready_at)
            select _lower_floor.inbox, _lower_floor.kind, _lower_floor.tier, clock_timestamp(), _lower_floor.ready_at
            from (
                select f.ready_at from postbox.inbox_floor f
                where f.inbox = _lower_floor.inbox and f.kind = _lower_floor.kind and f.tier = _lower_floor.tier
                order by f.at desc limit 1
            ) newest
            where _lower_floor.ready_at < newest.ready_at;
    end;
comment on function postbox._lower_floor(int, text, smallint, timestamptz) is 'Private: lets claims begin to look earlier';

-- What waits goes to other queues, and keeps its times: it may lie below what was handed out there.
create or replace function postbox._forget_floors(inbox int) returns void
    language sql volatile
    set search_path = pg_catalog, pg_temp
    begin atomic
        delete from postbox.inbox_floor f where f.inbox = _forget_floors.inbox and f.kind = 'batch';
    end;
comment on function postbox._forget_floors(int) is 'Private: lets claims look at all of the queues of an inbox';

-- Looking below is dear when much is gone that is not vacuumed: then not one time in twenty is spent on it.
create or replace function postbox._may_look(inbox int) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    return coalesce((
        select f.ready_at from postbox.inbox_floor f
        where f.inbox = _may_look.inbox and f.kind = 'look' and f.tier = 0
        order by f.at desc limit 1) < clock_timestamp(), true);
end
$function$;
comment on function postbox._may_look(int) is 'Private: whether a claim that found nothing may look below the floor';

create or replace function postbox._note_look(inbox int, took interval) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    if took > interval '2 milliseconds' then
        insert into postbox.inbox_floor (inbox, kind, tier, at, ready_at)
            values (_note_look.inbox, 'look', 0, clock_timestamp(), clock_timestamp() + 20 * took);
    end if;
end
$function$;
comment on function postbox._note_look(int, interval) is 'Private: what it took to look below the floor';

-- Removes floors that count no more, and lowers those that something came to lie below. Takes back leases that ran out, up to `most`;
-- the result is how many.
create or replace function postbox._sweep_inbox(box postbox.inbox, most int) returns int
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
as $function$
declare
    queue record;
    late timestamptz;
begin
    for queue in
        select f.kind, f.tier, max(f.at) as at from postbox.inbox_floor f where f.inbox = box.id group by f.kind, f.tier
    loop
        delete from postbox.inbox_floor f
            where f.inbox = box.id and f.kind = queue.kind and f.tier = queue.tier and f.at < queue.at - interval '1 minute';
        continue when queue.kind <> 'batch';
        select b.ready_at into late from postbox.inbox_batch b
            where b.inbox = box.id and b.tier = queue.tier and b.token is null and b.crashes < 2
            order by b.ready_at limit 1;
        perform postbox._lower_floor(box.id, queue.kind, queue.tier, late);
    end loop;
    return postbox._expire_leases(box, most, true);
end
$function$;
comment on function postbox._sweep_inbox(postbox.inbox, int) is 'Private: looks below the floors of an inbox, and takes back leases that ran out';

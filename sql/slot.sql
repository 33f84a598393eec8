-- Making slots. One cannot be made in a transaction that has written, no rollback undoes it, and making one waits for every
-- transaction that is writing: hence a timeout that names them.

-- What position a server's log is at means nothing to another transaction's frozen snapshot.
create or replace function postbox._require_before_writes(what text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    if pg_current_xact_id_if_assigned() is not null then
        raise exception using errcode = 'active_sql_transaction',
            message = format('%s in a transaction that has written', what),
            hint = 'PostgreSQL makes replication slots only before the first write: call the function in a transaction of its own.';
    end if;
    perform postbox._require_read_committed(what);
end
$function$;
comment on function postbox._require_before_writes(text) is 'Private: refuses where no slot can be made';

-- Returns when every transaction that had an id at the call is over, and visible if it has committed. Each holds a lock on its
-- id until then; a snapshot would not do, as it lists those alone that are older than the latest one to end.
create or replace function postbox._wait_for_writers(deadline timestamptz) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    open_now constant xid[] := array(
        select l.transactionid from pg_locks l
        where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted and l.pid is distinct from pg_backend_pid());
    left_over int;
    who text;
    pause float8 := 0.01;
begin
    loop
        select count(distinct l.virtualtransaction), string_agg(distinct case
                when l.pid is null then format('prepared transaction %s', coalesce(
                    (select format('%L since %s', p.gid, p.prepared) from pg_prepared_xacts p where p.transaction = l.transactionid), l.transactionid::text))
                else format('process %s (%s)%s', l.pid, coalesce(nullif(a.application_name, ''), 'unnamed'), ' since ' || a.xact_start::text)
                end, '; ')
            into left_over, who
            from pg_locks l
            left join pg_stat_activity a on a.pid = l.pid
            where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted and l.transactionid = any (open_now);
        exit when left_over = 0;
        if clock_timestamp() >= deadline then
            raise exception using errcode = 'lock_not_available',
                message = format('gave up waiting for %s %s', left_over, case left_over when 1 then 'transaction that is writing' else 'transactions that are writing' end),
                detail = who,
                hint = 'A replication slot starts where no older transaction is open. Let them end, or cut them off with pg_terminate_backend; then try again.';
        end if;
        -- Looking at the locks is not free for those who take some.
        perform pg_sleep(pause);
        pause := least(pause * 1.5, 0.5);
    end loop;
end
$function$;
comment on function postbox._wait_for_writers(timestamptz) is 'Private: waits for the transactions that are writing now, and names those that are left at the deadline';

create or replace function postbox._make_slot(slot name, plugin text, failover boolean, deadline timestamptz) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    lock_timeout_before constant text := current_setting('lock_timeout');
begin
    if failover and current_setting('server_version_num')::int < 170000 then
        raise exception using errcode = 'feature_not_supported',
            message = format('PostgreSQL %s does not keep replication slots on standbys', current_setting('server_version')),
            hint = 'Failover slots came with PostgreSQL 17. Without them, recover the group after a failover: postbox.recover_consumer_group.';
    end if;
    perform postbox._wait_for_writers(deadline);
    -- Those that began to write meanwhile are waited for as well; an error in here must not be caught, as the half-made slot
    -- goes only when the statement ends.
    if deadline < 'infinity' then
        perform set_config('lock_timeout', greatest(ceil(extract(epoch from deadline - clock_timestamp()) * 1000), 1000)::bigint::text, true);
    end if;
    if failover then
        execute format('select pg_create_logical_replication_slot(%L, %L, failover => true)', slot, plugin);
    else
        perform pg_create_logical_replication_slot(slot, plugin);
    end if;
    perform set_config('lock_timeout', lock_timeout_before, true);
end
$function$;
comment on function postbox._make_slot(name, text, boolean, timestamptz) is 'Private: makes a slot, or gives up at the deadline';

-- The name of a group's slot. The generation tells a slot that a committed transaction vouches for from one that was left behind.
create or replace function postbox._slot_name(group_name text, generation int) returns name
    language sql stable strict parallel safe
    return format('postbox%s_%s_%s', nullif(generation % 10000, 0), (select d.oid from pg_database d where d.datname = current_database()), group_name)::name;
comment on function postbox._slot_name(text, int) is 'Private: postbox_<oid of the database>_<group>, or postbox<generation>_... for later ones';

-- Until maintenance has seen that a slot of an earlier installation is gone, its name is that slot's: the slot has events that nobody else has, and
-- what a rollback leaves under the name would be kept for it.
create or replace function postbox._next_generation(group_name text, generation int) returns int
    language sql stable
    begin atomic
        select min(n.generation)
        from postbox.maintenance m
        cross join generate_series(_next_generation.generation + 1, _next_generation.generation + 1 + cardinality(m.earlier_slots)) as n(generation)
        where postbox._slot_name(_next_generation.group_name, n.generation) <> all (m.earlier_slots);
    end;
comment on function postbox._next_generation(text, int) is 'Private: the number of the next slot of a group';

-- Drops a slot of this database if it is there.
create or replace function postbox._drop_slot(slot name) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    perform pg_drop_replication_slot(s.slot_name) from pg_replication_slots s where s.slot_name = slot and s.database = current_database();
    return found;
end
$function$;
comment on function postbox._drop_slot(name) is 'Private: drops a slot if there is one of that name in this database';

-- What is confirmed to a client must survive a crash, whatever the database says about synchronous_commit.
create or replace function postbox._durable() returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'on', true);
    end if;
end
$function$;
comment on function postbox._durable() is 'Private: the transaction will be on disk when its commit returns';

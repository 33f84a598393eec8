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
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception using errcode = 'active_sql_transaction',
            message = format('%s in a transaction that is %s', what, current_setting('transaction_isolation')),
            hint = 'It has to see what others commit meanwhile: use READ COMMITTED.';
    end if;
end
$function$;
comment on function postbox._require_before_writes(text) is 'Private: refuses where no slot can be made';

-- Returns when every transaction that had an id at the call is over.
create or replace function postbox._wait_for_writers(deadline timestamptz) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    open_now constant xid8[] := array(select x from pg_snapshot_xip(pg_current_snapshot()) as running(x) where x is distinct from pg_current_xact_id_if_assigned());
    left_over xid8[];
    -- backend_xid and prepared transactions have the lower half of the id.
    numbers bigint[];
    who text;
begin
    loop
        left_over := array(select x from pg_snapshot_xip(pg_current_snapshot()) as running(x) where x = any (open_now));
        exit when cardinality(left_over) = 0;
        if clock_timestamp() >= deadline then
            numbers := array(select x::text::bigint & 4294967295 from unnest(left_over) as x);
            select string_agg(w.words, '; ' order by w.since) into who
                from (
                    select format('process %s (%s) since %s', a.pid, coalesce(nullif(a.application_name, ''), 'unnamed'), a.xact_start) as words, a.xact_start as since
                    from pg_stat_activity a
                    where a.backend_xid::text::bigint = any (numbers)
                    union all
                    select format('prepared transaction %L since %s', p.gid, p.prepared), p.prepared
                    from pg_prepared_xacts p
                    where p.transaction::text::bigint = any (numbers)
                ) w;
            raise exception using errcode = 'lock_not_available',
                message = format('gave up waiting for %s %s', cardinality(left_over), case cardinality(left_over) when 1 then 'transaction that is writing' else 'transactions that are writing' end),
                detail = coalesce(who, 'Their sessions cannot be seen by this role.'),
                hint = 'A replication slot starts where no older transaction is open. Let them end, or cut them off with pg_terminate_backend; then try again.';
        end if;
        perform pg_sleep(0.02);
    end loop;
end
$function$;
comment on function postbox._wait_for_writers(timestamptz) is 'Private: waits for the transactions that are writing now, and names those that are left at the deadline';

create or replace function postbox._make_slot(slot name, failover boolean, deadline timestamptz) returns void
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
        execute format('select pg_create_logical_replication_slot(%L, %L, failover => true)', slot, 'postbox');
    else
        perform pg_create_logical_replication_slot(slot, 'postbox');
    end if;
    perform set_config('lock_timeout', lock_timeout_before, true);
end
$function$;
comment on function postbox._make_slot(name, boolean, timestamptz) is 'Private: makes a slot, or gives up at the deadline';

-- The name of a group's slot. The generation tells a slot that a committed transaction vouches for from one that was left behind.
create or replace function postbox._slot_name(group_name text, generation int) returns name
    language sql stable strict parallel safe
    return format('postbox%s_%s_%s', nullif(generation % 10000, 0), (select d.oid from pg_database d where d.datname = current_database()), group_name)::name;
comment on function postbox._slot_name(text, int) is 'Private: postbox_<oid of the database>_<group>, or postbox<generation>_... for later ones';

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

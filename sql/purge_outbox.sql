-- Removing what an outbox stores, when somebody says so rather than when retention comes to it: by TRUNCATE of leaves, and on the record.

-- Lets the next leaf take rows, if it is empty: what the present one has can go then, and publishers never find it locked.
create or replace function postbox._leave_leaf(outbox oid) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    ring postbox._ring;
    generation bigint;
    next_seq bigint;
begin
    select * into ring from postbox._ring r where r.outbox = _leave_leaf.outbox;
    if exists (select from postbox._leaf l where l.outbox = _leave_leaf.outbox and l.distance = 0 and l.heap_bytes > 0)
        and exists (select from postbox._leaf l where l.outbox = _leave_leaf.outbox and l.distance = 1 and l.heap_bytes = 0)
    then
        -- As far ahead as _advance goes, for its reasons.
        generation := ((ring.last_seq + 1) >> ring.generation_bits) + 1 + greatest(4::bigint, 4294967296 >> ring.generation_bits);
        if generation < 9223372036854775807 >> ring.generation_bits then
            next_seq := generation << ring.generation_bits;
            perform setval(ring.sequence, next_seq - 1);
            insert into postbox.ring_move (outbox, moved_at, from_seq, to_seq) values (_leave_leaf.outbox, clock_timestamp(), ring.last_seq, next_seq - 1);
        end if;
    end if;
end
$function$;
comment on function postbox._leave_leaf(oid) is 'Private: lets the next leaf of a ring take rows now';

create or replace function postbox._purge_outbox(outbox regclass, name text, force boolean)
    returns table (leaf text, outcome text, rows bigint, detail text)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '2s'
as $function$
declare
    marker constant postbox._marker := postbox._known_outbox(outbox, name);
    ring postbox._ring;
    needs pg_snapshot[];
    -- What was committed below is what may be gone.
    up_to pg_lsn;
    needy text;
    one record;
    emptied record;
begin
    if force is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = format('whether to force the purge of outbox "%s" is NULL', name),
            hint = 'false removes what no consumer group needs, true everything.';
    end if;
    select * into ring from postbox._ring r where r.outbox = _purge_outbox.outbox;
    if ring.generation_bits is null then
        raise exception using errcode = 'wrong_object_type',
            message = format('outbox "%s" is an adopted table, whose rows are its owner''s to remove', name),
            hint = 'Only outboxes made by postbox.create_outbox can be purged. Delete rows of this one yourself, once every group has had them.';
    end if;
    perform postbox._require_read_committed(format('outbox "%s" is to be purged', name));
    -- Two that move the sequence of a ring would do so from the same place.
    if not pg_try_advisory_xact_lock(hashtextextended('postbox.maintain', 0)) then
        raise exception using errcode = 'lock_not_available',
            message = format('outbox "%s" cannot be purged while maintenance runs', name),
            hint = 'Try again in a moment.';
    end if;
    perform postbox._follow_outboxes();
    -- From here on nobody makes or moves a group on it, and retention passes it over.
    perform pg_advisory_xact_lock(postbox._lock_key(outbox));
    if force then
        for one in select l.leaf_name, l.claims_leaf_name from postbox._leaf l where l.outbox = _purge_outbox.outbox order by l.number loop
            -- As publishers do: the claim first, then its event.
            if one.claims_leaf_name is not null then
                execute format('lock table only %s in access exclusive mode', one.claims_leaf_name);
            end if;
            execute format('lock table only %s in access exclusive mode', one.leaf_name);
        end loop;
        -- Whatever was committed by now goes, and nothing else was there.
        needs := array[pg_current_snapshot()];
        up_to := pg_current_wal_insert_lsn();
        for one in
            select l.leaf as oid, l.leaf_name, l.claims_leaf_name, greatest(c.reltuples, 0)::bigint as estimate
            from postbox._leaf l join pg_class c on c.oid = l.leaf
            where l.outbox = _purge_outbox.outbox and l.heap_bytes > 0 order by l.number
        loop
            execute format('truncate table only %s', one.leaf_name);
            if one.claims_leaf_name is not null then
                execute format('truncate table only %s', one.claims_leaf_name);
            end if;
            perform postbox._note_removed(outbox, needs, one.estimate, up_to);
            delete from postbox.leaf f where f.leaf = one.oid;
            leaf := one.leaf_name;
            outcome := 'emptied';
            detail := 'forced: not looked at';
            return next;
        end loop;
    else
        select string_agg(distinct n.group_name, ', ') into needy from (
            select n.group_name from postbox._need n where n.outbox = _purge_outbox.outbox and n.snapshot is null
            union all
            select g.name from postbox.consumer_group g join postbox.consumer_group_outbox o on o.group_name = g.name cross join postbox._server server
                where o.outbox = _purge_outbox.outbox and g.system_identifier <> server.system_identifier) n;
        if needy is not null then
            raise exception using errcode = 'object_in_use',
                message = format('consumer group %s needs every row of outbox "%s"', needy, name),
                detail = 'It is being delivered from the table, or has no checkpoint yet, or is of another server.',
                hint = 'Wait for its first checkpoint, or drop the group. With force => true everything goes, whoever needs it.';
        end if;
        perform postbox._leave_leaf(outbox);
        -- Who is behind has the rows; without any group it is everything that is committed.
        needs := array[pg_current_snapshot()] || array(select n.snapshot from postbox._need n where n.outbox = _purge_outbox.outbox);
        up_to := coalesce((select c.lsn from postbox.checkpoint c where c.snapshot::text = postbox._earliest(needs)::text limit 1), pg_current_wal_insert_lsn());
        for pass in 1 .. 2 loop
            for one in
                select l.leaf as oid, l.leaf_name, l.claims_leaf, l.claims_leaf_name
                from postbox._leaf l
                where l.outbox = _purge_outbox.outbox and l.distance > 0 and l.heap_bytes > 0 order by l.distance
            loop
                emptied := postbox._empty_leaf(outbox, one.oid, one.leaf_name, one.claims_leaf, one.claims_leaf_name, needs);
                -- A leaf that is emptied lets the present one be left, and what that one has is looked at in the second pass.
                continue when pass = 1 and emptied.outcome <> 'emptied';
                if emptied.outcome = 'emptied' then
                    perform postbox._note_removed(outbox, needs, emptied.rows, up_to);
                    delete from postbox.leaf f where f.leaf = one.oid;
                end if;
                leaf := one.leaf_name;
                outcome := emptied.outcome;
                rows := emptied.rows;
                detail := case emptied.outcome when 'pinned' then 'a consumer group has not confirmed some of it' else emptied.reason end;
                return next;
            end loop;
            if pass = 1 then
                perform postbox._leave_leaf(outbox);
            end if;
        end loop;
        if exists (select from postbox._leaf l where l.outbox = _purge_outbox.outbox and l.distance = 0 and l.heap_bytes > 0) then
            select l.leaf_name into leaf from postbox._leaf l where l.outbox = _purge_outbox.outbox and l.distance = 0;
            outcome := 'kept';
            rows := null;
            detail := 'it takes rows, and the next leaf is not empty';
            return next;
        end if;
    end if;
    insert into postbox.audit (action, subject, detail) values ('purge', ring.outbox_name, jsonb_build_object('force', force));
end
$function$;
comment on function postbox._purge_outbox(regclass, text, boolean) is 'Private: purge_outbox with the outbox looked up';

create or replace function postbox.purge_outbox(outbox text, force boolean default false)
    returns table (leaf text, outcome text, rows bigint, detail text)
    language sql volatile
    begin atomic
        select p.leaf, p.outcome, p.rows, p.detail from postbox._purge_outbox(to_regclass(outbox), outbox, force) p;
    end;
comment on function postbox.purge_outbox(text, boolean) is
    'Removes stored events of an outbox now, whatever its retention: those that every consumer group is past, or all of them with force. Noted in postbox.audit';

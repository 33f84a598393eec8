-- A group is made in two parts because names are looked up along the caller's search_path, while everything else runs
-- with search_path pinned. The first part is parsed when it is created, so the caller's path reaches to_regclass only.

-- What the columns of an outbox mean is known from its marker; of one that is dropped, from here.
create or replace function postbox._note_markers(group_name text) returns void
    language sql volatile
    begin atomic
        update postbox.consumer_group_outbox o
            set marker = t.tgargs
            from pg_trigger t
            where o.group_name = _note_markers.group_name and t.tgrelid = o.outbox and t.tgname = 'postbox_outbox' and t.tgparentid = 0;
    end;
comment on function postbox._note_markers(text) is 'Private: notes what the columns of a group''s outboxes mean';

create or replace function postbox._create_consumer_group(
    name text, outboxes text[], relations regclass[], start text, failover boolean, wal_budget bigint, over_budget text, timeout interval, source text
) returns name
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    deadline constant timestamptz := coalesce(clock_timestamp() + timeout, 'infinity');
    plugin text;
    slot name;
    generation int;
    before pg_snapshot;
    position_of_bad int;
    noted bigint;
begin
    if name is null or name !~ '^[a-z0-9_]{1,40}$' then
        raise exception using errcode = 'invalid_name',
            message = format('consumer group name %s is not 1 to 40 characters of a-z, 0-9 and _', coalesce('"' || name || '"', 'NULL')),
            detail = 'It becomes part of the name of a replication slot.',
            hint = 'For instance billing, or billing_eu.';
    end if;
    slot := postbox._slot_name(name, 0);
    if start is null or start not in ('latest', 'earliest') then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('consumer group "%s" cannot start at %s', name, coalesce('"' || start || '"', 'NULL')),
            hint = 'It starts at latest (events that commit from now on) or at earliest (what the outboxes hold, too).';
    end if;
    if coalesce(cardinality(outboxes), 0) = 0 then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('consumer group "%s" needs at least one outbox', name),
            hint = format('For instance: postbox.create_consumer_group(%L, ''{orders}'').', name);
    end if;
    select n into position_of_bad
        from generate_subscripts(relations, 1) as n
        where relations[n] is null
        order by n limit 1;
    if found then
        raise exception using errcode = 'undefined_table',
            message = format('outbox %s does not exist', coalesce('"' || outboxes[position_of_bad] || '"', 'NULL')),
            hint = 'postbox.outbox_status() lists the outboxes; postbox.create_outbox makes one. '
                'Qualify a name whose schema is not in search_path.';
    end if;
    select n into position_of_bad
        from generate_subscripts(relations, 1) as n
        where not exists (select from postbox._marker m where m.outbox = relations[n])
        order by n limit 1;
    if found then
        raise exception using errcode = 'wrong_object_type',
            message = format('"%s" is not an outbox', outboxes[position_of_bad]),
            hint = 'postbox.outbox_status() lists the outboxes; postbox.adopt_outbox makes an existing table one.';
    end if;
    -- Renamed since it was made an outbox.
    perform postbox._require_shown(m.schema, m.name) from postbox._marker m where m.outbox = any (relations);
    plugin := postbox._check_source(source, name);
    if plugin = 'pgoutput' then
        perform postbox._require_published(r, format('the source pgoutput of consumer group "%s"', name)) from unnest(relations) as r;
    end if;
    perform postbox._check_wal_budget(name, wal_budget, over_budget, relations);
    if start = 'earliest' then
        perform postbox._require_replayable(r, 'starting at earliest') from unnest(relations) as r;
    end if;
    -- Without it a slot that another session is just making would look like one that was left behind.
    if not pg_try_advisory_xact_lock(hashtextextended('postbox.consumer_group ' || name, 0)) then
        raise exception using errcode = 'object_in_use',
            message = format('consumer group "%s" is being made by another session', name),
            hint = 'postbox.consumer_groups shows it once that session is done.';
    end if;
    if exists (select from postbox.consumer_group g where g.name = _create_consumer_group.name) then
        raise exception using errcode = 'duplicate_object',
            message = format('consumer group "%s" already exists', name),
            hint = 'postbox.consumer_groups shows it; postbox.drop_consumer_group drops it with its position.';
    end if;
    if exists (select from pg_replication_slots s where s.slot_name = slot) then
        raise exception using errcode = 'duplicate_object',
            message = format('replication slot "%s" of consumer group "%s" already exists', slot, name),
            detail = 'An earlier installation left it behind; what it has not confirmed is still held for it.',
            hint = format('Read it with postbox run --slot %s, or discard it: SELECT pg_drop_replication_slot(%L).',
                slot, slot);
    end if;
    generation := postbox._next_generation(name, -1);
    while generation > 0 and exists (select from pg_replication_slots s where s.slot_name = postbox._slot_name(name, generation)) loop
        generation := postbox._next_generation(name, generation);
    end loop;
    slot := postbox._slot_name(name, generation);
    perform postbox._require_before_writes(format('consumer group "%s" cannot be created', name));

    -- What is visible before the slot is made, the group is past; what comes later it reads, or has read.
    before := pg_current_snapshot();
    perform postbox._make_slot(slot, plugin, failover, deadline);
    -- A slot is not undone by a rollback, and one that no group knows would hold back the WAL for ever.
    begin
        -- drop_outbox takes these locks too: it sees this group, or this sees that the outbox is gone.
        perform pg_advisory_xact_lock(postbox._lock_key(relation))
            from (select distinct r from unnest(relations) as r order by r) as locked(relation);
        if start = 'earliest' then
            perform postbox._wait_for_writers(deadline);
        end if;
        perform postbox._durable();
        insert into postbox.consumer_group (name, slot_name, slot_generation, source, failover, wal_budget, over_budget, system_identifier, timeline)
            select _create_consumer_group.name, slot, generation, plugin, coalesce(_create_consumer_group.failover, false), _create_consumer_group.wal_budget,
                _create_consumer_group.over_budget, s.system_identifier, s.timeline
            from postbox._server s;
        insert into postbox.consumer_group_outbox (group_name, outbox, outbox_name)
            select distinct _create_consumer_group.name, m.outbox::regclass, format('%I.%I', m.schema, m.name)
            from postbox._marker m
            where m.outbox = any (relations);
        get diagnostics noted = row_count;
        if noted < (select count(distinct relation) from unnest(relations) as relation) then
            raise exception using errcode = 'undefined_table',
                message = format('an outbox of consumer group "%s" was dropped by another session just now', name),
                hint = 'postbox.outbox_status() lists the outboxes that are left.';
        end if;
        perform postbox._note_markers(name);
        insert into postbox.checkpoint (group_name, snapshot, lsn, system_identifier, timeline, taken_at)
            select g.name, before, s.confirmed_flush_lsn, g.system_identifier, g.timeline, clock_timestamp()
            from postbox.consumer_group g, pg_replication_slots s
            where g.name = _create_consumer_group.name and s.slot_name = slot;
        if start = 'earliest' then
            perform postbox._start_backfill(name, '{}', 'earliest');
        end if;
    exception when others or query_canceled then
        perform pg_drop_replication_slot(slot);
        raise;
    end;
    return slot;
end
$function$;
comment on function postbox._create_consumer_group(text, text[], regclass[], text, boolean, bigint, text, interval, text) is
    'Private: create_consumer_group with the outboxes looked up';

create or replace function postbox.create_consumer_group(
    name        text,
    outboxes    text[],
    start       text     default 'latest',
    failover    boolean  default false,
    wal_budget  bigint   default null,
    over_budget text     default 'alert',
    timeout     interval default '1 minute',
    source      text     default null
) returns name
    language sql volatile
    begin atomic
        select postbox._create_consumer_group(
            name,
            outboxes,
            (select array_agg(to_regclass(outbox) order by n) from unnest(outboxes) with ordinality as listed(outbox, n)),
            start, failover, wal_budget, over_budget, timeout, source);
    end;
comment on function postbox.create_consumer_group(text, text[], text, boolean, bigint, text, interval, text) is
    'Makes a consumer group that reads the outboxes from now on, or from the earliest event that is stored, and returns the name of its replication slot';

-- What members and operators do with dead letters. Letters of a key have an order, that of their ids. A follower's turn comes when
-- nothing of its key is before it; whoever removes a letter calls up the one behind it (_call_up).

-- What a command says on its standard error may be anything.
create or replace function postbox._readable(bytes bytea) returns text
    language plpgsql stable strict parallel safe
    set search_path = pg_catalog, pg_temp
as $function$
begin
    return convert_from(bytes, 'UTF8');
exception when others then
    return encode(bytes, 'escape');
end
$function$;
comment on function postbox._readable(bytea) is 'Private: UTF-8 as text, escaped where this database has no such characters';

create or replace function postbox._call_up(group_name text, key text) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    head postbox.dead_letter.id%type;
begin
    if key is null then
        select d.id into head from postbox.dead_letter d
            where d.group_name = _call_up.group_name and d.key is null and hashtextextended(d.key, 0) is null
            order by d.id limit 1;
    else
        select d.id into head from postbox.dead_letter d
            where d.group_name = _call_up.group_name and d.key = _call_up.key and hashtextextended(d.key, 0) = hashtextextended(_call_up.key, 0)
            order by d.id limit 1;
    end if;
    update postbox.dead_letter d set due_at = clock_timestamp() where d.id = head and d.why = 'follower' and d.due_at is null;
    return head is not null;
end
$function$;
comment on function postbox._call_up(text, text) is 'Private: the first letter of the key is due if it is a follower; true if there is any';

create or replace function postbox._store_dead_letters(
    group_name text, epoch bigint, behind boolean,
    outboxes text[], event_ids text[], event_hashes bytea[], seqs bigint[], keys text[], types text[], xids text[], commit_lsns pg_lsn[],
    ordinals bigint[], commit_times timestamptz[], frames bytea[], whys text[], attempts int[], errors bytea[], first_failed timestamptz[], due_in_ms bigint[]
) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    perform postbox._durable();
    perform postbox._require_epoch(group_name, epoch);
    if behind and not postbox._call_up(group_name, keys[1]) then
        return false;
    end if;
    -- One by one: the same event may be among them twice.
    for n in 1 .. cardinality(outboxes) loop
        insert into postbox.dead_letter as d (
            group_name, why, outbox, event_id, event_hash, seq, key, type, xid, commit_lsn, ordinal, commit_time, frame, attempts, error,
            first_failed_at, last_failed_at, due_at, epoch
        ) values (
            _store_dead_letters.group_name, whys[n], outboxes[n], event_ids[n], event_hashes[n], seqs[n], keys[n], types[n], xids[n]::xid8, commit_lsns[n],
            ordinals[n], commit_times[n], frames[n], _store_dead_letters.attempts[n], postbox._readable(errors[n]),
            first_failed[n], case when first_failed[n] is not null then clock_timestamp() end,
            clock_timestamp() + due_in_ms[n] * interval '1 millisecond', _store_dead_letters.epoch
        )
        on conflict on constraint dead_letter_event_key do update set
            why = case when excluded.why = 'follower' then d.why else excluded.why end,
            attempts = greatest(d.attempts, excluded.attempts),
            error = coalesce(excluded.error, d.error),
            first_failed_at = coalesce(d.first_failed_at, excluded.first_failed_at),
            last_failed_at = coalesce(excluded.last_failed_at, d.last_failed_at),
            due_at = coalesce(d.due_at, excluded.due_at),
            epoch = excluded.epoch;
    end loop;
    return true;
end
$function$;
comment on function postbox._store_dead_letters(text, bigint, boolean, text[], text[], bytea[], bigint[], text[], text[], text[], pg_lsn[], bigint[], timestamptz[], bytea[], text[], int[], bytea[], timestamptz[], bigint[]) is
    'Private: stores events, each once; false if they were to go behind others of their key and none are left';

create or replace function postbox._call_up_dead_letters(group_name text, epoch bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    perform postbox._durable();
    perform postbox._require_epoch(group_name, epoch);
    -- Rows may have been removed by hand.
    perform postbox._call_up(group_name, k.key)
        from (select distinct d.key from postbox.dead_letter d where d.group_name = _call_up_dead_letters.group_name) k;
end
$function$;
comment on function postbox._call_up_dead_letters(text, bigint) is 'Private: of each key that has dead letters the first one is due';

-- Without a lock: a member that stands still while it is told many keys does not keep the group.
create or replace function postbox._dead_letter_keys(group_name text) returns setof text
    language sql stable
    begin atomic
        select distinct d.key from postbox.dead_letter d where d.group_name = _dead_letter_keys.group_name;
    end;
comment on function postbox._dead_letter_keys(text) is 'Private: the keys that have dead letters';

create or replace function postbox._due_dead_letters(group_name text, in_order boolean, keyless boolean, busy bigint[], most int, most_bytes bigint)
    returns table (id bigint, attempts int, frame bytea)
    language sql volatile
    begin atomic
        select listed.id, listed.attempts, listed.frame
        from (
            select d.id, d.attempts, d.frame, sum(octet_length(d.frame)::bigint) over (order by d.id) - octet_length(d.frame) as bytes_before
            from (
                select l.id, l.attempts, l.frame
                from postbox.dead_letter l
                where l.group_name = _due_dead_letters.group_name and l.due_at <= clock_timestamp() and l.id <> all (busy)
                  and (not in_order or (l.key is null and not keyless) or not exists (
                      select from postbox.dead_letter e
                      where e.group_name = l.group_name and e.id < l.id
                        and ((e.key = l.key and hashtextextended(e.key, 0) = hashtextextended(l.key, 0)) or (e.key is null and l.key is null))
                  ))
                order by l.id
                limit most
            ) d
        ) listed
        where listed.bytes_before < most_bytes
        order by listed.id;
    end;
comment on function postbox._due_dead_letters(text, boolean, boolean, bigint[], int, bigint) is 'Private: letters whose turn it is';

create or replace function postbox._delivered_dead_letter(group_name text, epoch bigint, id bigint) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    found_key text;
begin
    perform postbox._durable();
    perform postbox._require_epoch(group_name, epoch);
    delete from postbox.dead_letter d where d.id = _delivered_dead_letter.id and d.group_name = _delivered_dead_letter.group_name
        returning d.key into found_key;
    -- Discarded meanwhile: whether others are left shows when one is to be stored behind them.
    return found and postbox._call_up(group_name, found_key);
end
$function$;
comment on function postbox._delivered_dead_letter(text, bigint, bigint) is 'Private: removes a letter; true if others of its key are left';

create or replace function postbox._fail_dead_letter(group_name text, epoch bigint, id bigint, error bytea, due_in_ms bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    perform postbox._durable();
    perform postbox._require_epoch(group_name, epoch);
    update postbox.dead_letter d
        set attempts = d.attempts + 1, error = postbox._readable(_fail_dead_letter.error), last_failed_at = clock_timestamp(),
            first_failed_at = coalesce(d.first_failed_at, clock_timestamp()),
            why = case d.why when 'follower' then 'failed' else d.why end,
            due_at = clock_timestamp() + due_in_ms * interval '1 millisecond',
            epoch = _fail_dead_letter.epoch
        where d.id = _fail_dead_letter.id and d.group_name = _fail_dead_letter.group_name;
end
$function$;
comment on function postbox._fail_dead_letter(text, bigint, bigint, bytea, bigint) is 'Private: another attempt has failed';

create or replace view postbox.dead_letters as
    select d.group_name, d.id, d.why, d.outbox, d.event_id, d.seq, d.key, d.type, d.xid, d.commit_lsn, d.ordinal, d.commit_time,
           octet_length(d.frame) as bytes, d.attempts, d.error, d.first_failed_at, d.last_failed_at, d.stored_at, d.due_at
    from postbox.dead_letter d;
comment on view postbox.dead_letters is 'Events that could not be delivered to a group, and those of their keys that wait behind them';
comment on column postbox.dead_letters.why is 'failed; follower: it waits behind others of its key; unreadable: the row cannot be an event';
comment on column postbox.dead_letters.bytes is 'Size of the stored event';
comment on column postbox.dead_letters.due_at is 'From then on the member tries again; NULL: it waits for a person, or for its turn';

-- A switch that is NULL says neither.
create or replace function postbox._check_dry_run(dry_run boolean) returns void
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
as $function$
begin
    if dry_run is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = 'dry_run is NULL',
            hint = 'With true nothing is done but to say what would be; with false it is done.';
    end if;
end
$function$;
comment on function postbox._check_dry_run(boolean) is 'Private: refuses NULL';

-- What a call of redrive or discard is about.
create or replace function postbox._select_dead_letters(
    group_name text, ids bigint[], type text, key text, error text, older_than interval, every boolean, dry_run boolean
) returns bigint[]
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    missing bigint;
    chosen bigint[];
begin
    if dry_run then
        perform from postbox.consumer_group g where g.name = group_name;
    else
        -- Nobody stores behind a letter that is about to go.
        perform from postbox.consumer_group g where g.name = group_name for no key update;
    end if;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('consumer group %s does not exist', coalesce('"' || group_name || '"', 'NULL')),
            hint = 'The view postbox.consumer_groups lists the groups.';
    end if;
    if ids is null and type is null and key is null and error is null and older_than is null and every is not true then
        raise exception using errcode = 'invalid_parameter_value',
            message = 'neither ids nor a filter say which dead letters are meant',
            hint = 'every => true means all of the group.';
    end if;
    if older_than < interval '0' then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('older_than %s is negative', older_than),
            hint = 'For instance interval ''1 day''.';
    end if;
    select n into missing from unnest(ids) as n
        where n is null or not exists (select from postbox.dead_letter d where d.id = n and d.group_name = _select_dead_letters.group_name)
        limit 1;
    if found then
        raise exception using errcode = 'no_data_found',
            message = format('consumer group "%s" has no dead letter %s', group_name, coalesce(missing::text, 'NULL')),
            hint = format('postbox dead-letter list %s shows them.', group_name);
    end if;
    chosen := array(
        select d.id from postbox.dead_letter d
        where d.group_name = _select_dead_letters.group_name
          and (ids is null or d.id = any (ids))
          and (_select_dead_letters.type is null or d.type = _select_dead_letters.type)
          and (_select_dead_letters.key is null or (d.key = _select_dead_letters.key and hashtextextended(d.key, 0) = hashtextextended(_select_dead_letters.key, 0)))
          and (_select_dead_letters.error is null or strpos(lower(d.error), lower(_select_dead_letters.error)) > 0)
          and (older_than is null or d.stored_at < clock_timestamp() - older_than)
        order by d.id
    );
    return case when dry_run then chosen else array(select d.id from postbox.dead_letter d where d.id = any (chosen) order by d.id for update) end;
end
$function$;
comment on function postbox._select_dead_letters(text, bigint[], text, text, text, interval, boolean, boolean) is
    'Private: the ids of those that are meant, locked unless it is a dry run: the member goes on meanwhile';

create or replace function postbox._audit_dead_letters(
    action text, group_name text, chosen bigint[], ids bigint[], type text, key text, error text, older_than interval
) returns void
    language sql volatile
    begin atomic
        insert into postbox.audit (action, subject, detail)
            select _audit_dead_letters.action, _audit_dead_letters.group_name, jsonb_strip_nulls(jsonb_build_object(
                'count', cardinality(chosen), 'first', chosen[1], 'last', chosen[cardinality(chosen)], 'ids', ids,
                'type', _audit_dead_letters.type, 'key', _audit_dead_letters.key, 'error', _audit_dead_letters.error, 'older_than', older_than))
            where cardinality(chosen) > 0;
    end;
comment on function postbox._audit_dead_letters(text, text, bigint[], bigint[], text, text, text, interval) is 'Private: who redrove or discarded what';

create or replace function postbox.redrive_dead_letters(
    group_name text, ids bigint[] default null, type text default null, key text default null, error text default null,
    older_than interval default null, every boolean default false, dry_run boolean default false
) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    chosen bigint[];
begin
    perform postbox._check_dry_run(dry_run);
    chosen := postbox._select_dead_letters(group_name, ids, type, key, error, older_than, every, dry_run);
    if not dry_run then
        update postbox.dead_letter d set due_at = clock_timestamp() where d.id = any (chosen);
        perform postbox._audit_dead_letters('redrive', group_name, chosen, ids, type, key, error, older_than);
    end if;
    return cardinality(chosen);
end
$function$;
comment on function postbox.redrive_dead_letters(text, bigint[], text, text, text, interval, boolean, boolean) is
    'Has the member of a group try dead letters again, each once; the number of those chosen';

create or replace function postbox.discard_dead_letters(
    group_name text, ids bigint[] default null, type text default null, key text default null, error text default null,
    older_than interval default null, every boolean default false, dry_run boolean default false
) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    chosen bigint[];
    keys text[];
    gone_key text;
begin
    perform postbox._check_dry_run(dry_run);
    chosen := postbox._select_dead_letters(group_name, ids, type, key, error, older_than, every, dry_run);
    if not dry_run then
        keys := array(select distinct d.key from postbox.dead_letter d where d.id = any (chosen));
        delete from postbox.dead_letter d where d.id = any (chosen);
        foreach gone_key in array keys loop
            perform postbox._call_up(group_name, gone_key);
        end loop;
        perform postbox._audit_dead_letters('discard', group_name, chosen, ids, type, key, error, older_than);
    end if;
    return cardinality(chosen);
end
$function$;
comment on function postbox.discard_dead_letters(text, bigint[], text, text, text, interval, boolean, boolean) is
    'Removes dead letters, which are then never delivered to the group; the number of those chosen';

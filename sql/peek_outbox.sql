-- Looking at what an outbox stores, without taking any of it.

-- SQL for what an event says of its data, if that lies beside the outbox. An outbox that never had a claim check has no column for it.
create or replace function postbox._peeked_claim(outbox regclass) returns text
    language sql stable
    return case when exists (select from pg_attribute a where a.attrelid = outbox and a.attname = 'claim' and a.atttypid = 'jsonb'::regtype and not a.attisdropped)
        then 'o.claim' else 'null::jsonb' end;
comment on function postbox._peeked_claim(regclass) is 'Private: SQL for the claim of an event';

create or replace function postbox._peek_outbox(outbox regclass, name text, max_events int, group_name text)
    returns table (seq bigint, event_id text, created_at timestamptz, key text, type text, headers jsonb, payload text, claim jsonb)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    marker constant postbox._marker := postbox._known_outbox(outbox, name);
    seen pg_snapshot;
begin
    if marker.adopted then
        raise exception using errcode = 'wrong_object_type',
            message = format('outbox "%s" is an adopted table: it has columns of its own', name),
            hint = 'SELECT from it; this is for outboxes made by postbox.create_outbox.';
    end if;
    if max_events is null or max_events not between 1 and 10000 then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('max_events is %s, must be 1 to 10000', coalesce(max_events::text, 'NULL')),
            hint = 'How many events to show at most, the oldest first.';
    end if;
    if group_name is not null then
        if not exists (select from postbox.consumer_group_outbox o where o.outbox = _peek_outbox.outbox and o.group_name = _peek_outbox.group_name) then
            raise exception using errcode = 'undefined_object',
                message = format('there is no consumer group "%s" that reads outbox "%s"', group_name, name),
                hint = 'The view postbox.consumer_groups lists the groups and what they read.';
        end if;
        select c.snapshot into seen from postbox.checkpoint c where c.group_name = _peek_outbox.group_name;
    end if;
    return query execute format(
        'select o.seq, o.event_id::text, o.created_at, o.key, o.type, o.headers, o.payload::text, %s
         from %I.%I o
         where $1 is null or not pg_visible_in_snapshot(o.xid, $1)
         order by o.seq
         limit $2', postbox._peeked_claim(outbox), marker.schema, marker.name)
        using seen, max_events;
end
$function$;
comment on function postbox._peek_outbox(regclass, text, int, text) is 'Private: peek_outbox with the outbox looked up';

create or replace function postbox.peek_outbox(outbox text, max_events int default 10, group_name text default null)
    returns table (seq bigint, event_id text, created_at timestamptz, key text, type text, headers jsonb, payload text, claim jsonb)
    language sql stable
    begin atomic
        select p.seq, p.event_id, p.created_at, p.key, p.type, p.headers, p.payload, p.claim
        from postbox._peek_outbox(to_regclass(outbox), outbox, max_events, group_name) p;
    end;
comment on function postbox.peek_outbox(text, int, text) is
    'The oldest events that an outbox stores, or of those the ones that a consumer group has not confirmed as of its last checkpoint; takes nothing. Needs SELECT on the outbox';

-- For tests: what the caller's own transaction has published, which nobody else sees yet.
create or replace function postbox._published_here(outbox regclass, name text)
    returns table (seq bigint, event_id text, key text, type text, headers jsonb, payload text, claim jsonb)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    marker constant postbox._marker := postbox._known_outbox(outbox, name);
begin
    if marker.adopted then
        raise exception using errcode = 'wrong_object_type',
            message = format('outbox "%s" is an adopted table: its rows do not say which transaction wrote them', name),
            hint = 'SELECT from it; this is for outboxes made by postbox.create_outbox.';
    end if;
    return query execute format(
        'select o.seq, o.event_id::text, o.key, o.type, o.headers, o.payload::text, %s from %I.%I o where o.xid = pg_current_xact_id_if_assigned() order by o.seq',
        postbox._peeked_claim(outbox), marker.schema, marker.name);
end
$function$;
comment on function postbox._published_here(regclass, text) is 'Private: published_here with the outbox looked up';

create or replace function postbox.published_here(outbox text)
    returns table (seq bigint, event_id text, key text, type text, headers jsonb, payload text, claim jsonb)
    language sql stable
    begin atomic
        select p.seq, p.event_id, p.key, p.type, p.headers, p.payload, p.claim from postbox._published_here(to_regclass(outbox), outbox) p;
    end;
comment on function postbox.published_here(text) is 'The events that the caller''s transaction has published to an outbox so far. Needs SELECT on the outbox';

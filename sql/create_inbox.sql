-- The table of an inbox, its triggers and its views belong to its owner, like those of an outbox; the state of its messages does not.

create or replace function postbox._check_inbox_name(name text, schema text) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    -- The views are named after it: pending_<name>, messages_<name>.
    max_bytes constant int := current_setting('max_identifier_length')::int - octet_length('messages_');
begin
    if name is null or schema is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = 'an inbox needs a name and a schema, neither of them NULL',
            hint = 'Leave out what is to have its default: postbox.create_inbox(''payments'') needs no more than the name.';
    end if;
    if name = '' or octet_length(name) > max_bytes then
        raise exception using errcode = 'invalid_name',
            message = format('inbox name "%s" has %s bytes, must have 1 to %s', name, octet_length(name), max_bytes),
            detail = 'Its views are named after it, with a prefix of 9 bytes at most.',
            hint = 'Choose a shorter name, for instance payments.';
    end if;
    if name ~ '[."]' then
        raise exception using errcode = 'invalid_name',
            message = format('inbox name "%s" contains a dot or a double quote', name),
            hint = 'Give the bare name, unquoted, and the schema as the second argument: postbox.create_inbox(''payments'', ''public''). '
                || 'A table that has such a name can be an inbox of another: postbox.enable_inbox_tracking(''...'', name => ''payments'').';
    end if;
    if schema ~ '^pg_' or schema in ('information_schema', 'postbox') then
        raise exception using errcode = 'reserved_name',
            message = format('schema "%s" is reserved and cannot hold an inbox', schema),
            hint = 'An inbox is a table of yours: choose a schema of yours.';
    end if;
    if to_regnamespace(quote_ident(schema)) is null then
        raise exception using errcode = 'invalid_schema_name',
            message = format('schema "%s" does not exist', schema),
            hint = format('Create it first: CREATE SCHEMA %I.', schema);
    end if;
    if exists (select from postbox.inbox i where i.name = _check_inbox_name.name) then
        raise exception using errcode = 'duplicate_object',
            message = format('inbox "%s" already exists', name),
            hint = 'Names of inboxes are those of the whole database; postbox.inbox_status() lists them.';
    end if;
end
$function$;
comment on function postbox._check_inbox_name(text, text) is 'Private: refuses names that an inbox cannot have';

create or replace function postbox._check_inbox_settings(
    name text, max_retries int, retention interval, dedup_window interval, dead_retention interval, failure_policy text,
    style text, backoff_initial interval, backoff_max interval
) returns void
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
as $function$
begin
    if max_retries is null or max_retries not between 0 and 1000 then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('max_retries of inbox "%s" is %s, must be 0 to 1000', name, coalesce(max_retries::text, 'NULL')),
            hint = 'The first attempt is not counted: with 3, a message is tried four times.';
    end if;
    if retention is null or retention < interval '0' then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('retention of inbox "%s" is %s, must be 0 or more', name, coalesce(retention::text, 'NULL')),
            hint = 'How long processed messages are kept, for instance interval ''7 days''.';
    end if;
    if dedup_window is null or dedup_window < interval '0' then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('dedup_window of inbox "%s" is %s, must be 0 or more', name, coalesce(dedup_window::text, 'NULL')),
            hint = 'How long after its processing a message that comes again is known, for instance interval ''7 days''; as long as it is kept it is known anyway.';
    end if;
    if dead_retention < interval '0' then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('dead_retention of inbox "%s" is %s, must be 0 or more', name, dead_retention),
            hint = 'How long dead letters are kept; NULL keeps them until somebody replays or discards them.';
    end if;
    if failure_policy is null or failure_policy not in ('skip', 'pause', 'park') then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('failure_policy of inbox "%s" is %s, must be skip, pause or park', name, coalesce('"' || failure_policy || '"', 'NULL')),
            hint = 'What becomes of an ordered aggregate when a message of it is given up: it goes on, it waits, or all behind it are set aside.';
    end if;
    if style is null or style not in ('claim', 'update') then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('style of inbox "%s" is %s, must be claim or update', name, coalesce('"' || style || '"', 'NULL')),
            hint = 'claim: workers call inbox_claim and inbox_complete; update: they SELECT ... FOR UPDATE SKIP LOCKED and set processed_at.';
    end if;
    if backoff_initial is null or backoff_max is null or backoff_initial <= interval '0' or backoff_max < backoff_initial then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('backoff of inbox "%s" is %s to %s, must be more than 0 and not fall', name, coalesce(backoff_initial::text, 'NULL'), coalesce(backoff_max::text, 'NULL')),
            hint = 'For instance backoff_initial => interval ''1 second'', backoff_max => interval ''5 minutes''.';
    end if;
end
$function$;
comment on function postbox._check_inbox_settings(text, int, interval, interval, interval, text, text, interval, interval) is
    'Private: refuses settings that an inbox cannot have';

create or replace function postbox.create_inbox(
    name            text,
    schema          text     default 'public',
    max_retries     int      default 3,
    retention       interval default '7 days',
    dedup_window    interval default '7 days',
    failure_policy  text     default 'skip',
    dead_retention  interval default null,
    style           text     default 'claim',
    backoff_initial interval default '1 second',
    backoff_max     interval default '5 minutes'
) returns regclass
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    made regclass;
begin
    perform postbox._check_inbox_name(name, schema);
    perform postbox._check_inbox_settings(name, max_retries, retention, dedup_window, dead_retention, failure_policy, style, backoff_initial, backoff_max);
    if to_regclass(format('%I.%I', schema, name)) is not null then
        raise exception using errcode = 'duplicate_table',
            message = format('relation "%s.%s" already exists', schema, name),
            hint = 'Choose another name, or call postbox.enable_inbox_tracking if this table is to be the inbox.';
    end if;
    execute format(
        'create table %1$I.%2$I (
            event_id     pg_catalog.text        collate pg_catalog."C" not null,
            event_type   pg_catalog.text,
            source       pg_catalog.text,
            aggregate_id pg_catalog.text        collate pg_catalog."C",
            sequence_num pg_catalog.int8,
            priority     pg_catalog.int4,
            payload      pg_catalog.jsonb,
            headers      pg_catalog.jsonb,
            received_at  pg_catalog.timestamptz not null default pg_catalog.now(),
            visible_at   pg_catalog.timestamptz,
            trace_id     pg_catalog.text,
            processed_at pg_catalog.timestamptz,
            error        pg_catalog.text,
            retry_count  pg_catalog.int4        not null default 0,
            constraint %3$I primary key (event_id)
        )', schema, name, name || '_pkey');
    made := format('%I.%I', schema, name)::regclass;
    execute format('comment on table %s is %L', made, 'Inbox of Postbox: a row inserted here is a message to process, each event_id once');
    insert into postbox.inbox (
        name, relation, managed, style, columns, max_retries, backoff_initial, backoff_max, retention, dedup_window, dead_retention, failure_policy
    ) values (
        create_inbox.name, made, true, create_inbox.style,
        '{"event_id": "event_id", "event_type": "event_type", "source": "source", "aggregate_id": "aggregate_id", "sequence_num": "sequence_num",
          "priority": "priority", "payload": "payload", "headers": "headers", "received_at": "received_at", "visible_at": "visible_at",
          "trace_id": "trace_id", "processed_at": "processed_at", "error": "error", "retry_count": "retry_count"}',
        create_inbox.max_retries, create_inbox.backoff_initial, create_inbox.backoff_max, create_inbox.retention, create_inbox.dedup_window,
        create_inbox.dead_retention, create_inbox.failure_policy
    );
    perform postbox._arm_inbox(name);
    return made;
end
$function$;
comment on function postbox.create_inbox(text, text, int, interval, interval, text, interval, text, interval, interval) is
    'Makes table schema.name as an inbox: what is inserted there, each event_id once, is handed out to workers. The table is yours';

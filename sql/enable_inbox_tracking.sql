-- Adoption: a table that exists becomes an inbox. It gets triggers, and nothing about its columns changes.

-- The column of a role: the one that is named, or the one that has the role's name; NULL if the table has none. Raises where it does not fit.
create or replace function postbox._adopted_column(target regclass, role text, given text, types text[], is_needed boolean) returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    found_as record;
begin
    if given = '' then
        if is_needed then
            raise exception using errcode = 'invalid_parameter_value',
                message = format('the messages of %s need a column for %s', target, role),
                hint = format('Name the column: %s => ''...''.', role);
        end if;
        return null;
    end if;
    select a.attname, format_type(a.atttypid, null) as type, a.attgenerated <> '' as is_generated, a.attnotnull as is_not_null,
            coalesce(c.collisdeterministic, true) as is_deterministic
        into found_as
        from pg_attribute a left join pg_collation c on c.oid = a.attcollation
        where a.attrelid = target and a.attname = coalesce(given, role) and a.attnum > 0 and not a.attisdropped;
    if not found then
        if given is null and not is_needed then
            return null;
        end if;
        raise exception using errcode = 'undefined_column',
            message = format('table %s has no column "%s" to be the %s of a message', target, coalesce(given, role), role),
            hint = format('Name the column: %s => ''...''.', role)
                || case when is_needed then '' else format(' With %s => '''' the messages have none.', role) end;
    end if;
    if found_as.type <> all (types) then
        raise exception using errcode = 'datatype_mismatch',
            message = format('column "%s" of table %s is of type %s and cannot be the %s of a message', found_as.attname, target, found_as.type, role),
            detail = format('The type must be one of %s.', array_to_string(types, ', ')),
            hint = format('Name another column: %s => ''...''.', role)
                || case when is_needed then '' else format(' With %s => '''' the messages have none.', role) end;
    end if;
    if found_as.is_generated then
        raise exception using errcode = 'feature_not_supported',
            message = format('column "%s" of table %s is generated and cannot be the %s of a message', found_as.attname, target, role),
            detail = 'Triggers that run before the INSERT do not see its value.',
            hint = format('Name another column: %s => ''...''.', role);
    end if;
    if role = 'event_id' and not (found_as.is_not_null and found_as.is_deterministic) then
        raise exception using errcode = 'invalid_table_definition',
            message = format('column "%s" of table %s cannot be the event_id of a message: it %s', found_as.attname, target,
                case when found_as.is_not_null then 'has a collation that takes different texts for equal' else 'can be NULL' end),
            hint = case when found_as.is_not_null then 'Give it a deterministic collation.'
                else format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL.', target, found_as.attname) end;
    end if;
    return found_as.attname;
end
$function$;
comment on function postbox._adopted_column(regclass, text, text, text[], boolean) is 'Private: the column of a role in a table that is to be an inbox';

create or replace function postbox._check_inbox_table(target regclass) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    class pg_class;
    wrong text;
begin
    if target is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = 'the table that is to be an inbox is NULL',
            hint = 'postbox.create_inbox makes a new one.';
    end if;
    select * into class from pg_class c where c.oid = target;
    wrong := case
        when not found then 'gone'
        when class.relkind = 'p' or class.relispartition then 'partitioned: an id would be unique within a partition only'
        when class.relkind = 'f' then 'a foreign table: its rows are committed elsewhere'
        when class.relkind <> 'r' then 'not a table'
        when class.relpersistence = 't' then 'temporary: no worker sees it'
        when class.relpersistence = 'u' then 'unlogged: a crash would empty it'
        when class.relhassubclass and exists (select from pg_inherits h where h.inhparent = target)
            or exists (select from pg_inherits h where h.inhrelid = target) then 'part of an inheritance: an id would be unique within one table only'
    end;
    if wrong is not null then
        raise exception using errcode = 'wrong_object_type',
            message = format('%s cannot be an inbox: it is %s', target, wrong),
            hint = 'Adopt an ordinary table' || case when class.relpersistence = 'u' then ': ALTER TABLE ... SET LOGGED makes it one.' else '.' end;
    end if;
    if (select n.nspname in ('pg_catalog', 'information_schema', 'postbox') or n.nspname ~ '^pg_toast' from pg_namespace n where n.oid = class.relnamespace) then
        raise exception using errcode = 'reserved_name',
            message = format('%s is in a reserved schema and cannot be an inbox', target),
            hint = 'An inbox is a table of yours, in a schema of yours.';
    end if;
end
$function$;
comment on function postbox._check_inbox_table(regclass) is 'Private: refuses tables that cannot be inboxes';

-- The messages that a table holds when it is adopted, as if they had just arrived, in the order in which they had.
create or replace function postbox._take_over_pending(box postbox.inbox, pending text) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    -- Of any number of messages only one batch is in memory at a time.
    set enable_hashagg = off
as $function$
declare
    condition constant text := case when pending = 'all' or not box.columns ? 'processed_at' then 'true' else format('a.%I is null', box.columns ->> 'processed_at') end;
    tried constant text := format('coalesce(%s, 0)', postbox._inbox_column(box.columns, 'retry_count', 'a', 'int'));
    id constant text := postbox._inbox_column(box.columns, 'event_id', 'a', 'text');
    taken bigint;
    wrong text;
begin
    execute format('select %1$s from %2$s a where %3$s and octet_length(%1$s) not between 1 and 512 limit 1', id, box.relation, condition) into wrong;
    if wrong is not null then
        raise exception using errcode = 'check_violation',
            message = format('%s holds a message whose event_id has %s bytes, must have 1 to 512', box.relation, octet_length(wrong)),
            hint = 'Remove it, or give it another id.';
    end if;
    if box.columns ? 'retry_count' then
        execute format(
            'insert into postbox.inbox_dead (inbox, event_id, event_type, aggregate_id, sequence_num, tier, why, error, attempts, told_at)
                select %1$s, %2$s, %3$s, %4$s, %5$s, 0, ''failed'', %6$s, %7$s, clock_timestamp() from %8$s a where %9$s and %7$s > %10$s',
            box.id, id, postbox._inbox_column(box.columns, 'event_type', 'a', 'text'), postbox._inbox_column(box.columns, 'aggregate_id', 'a', 'text'),
            postbox._inbox_column(box.columns, 'sequence_num', 'a', 'bigint'), postbox._inbox_column(box.columns, 'error', 'a', 'text'),
            tried, box.relation, condition, box.max_retries);
    end if;
    if box.style = 'update' then
        return null;
    end if;
    execute format(
        'insert into postbox.inbox_batch (inbox, tier, ready_at, event_type, event_ids)
            select %1$s, 0, min(m.ready_at), m.event_type, array_agg(m.event_id order by m.n)
            from (
                select a.*, (row_number() over (partition by a.due, a.event_type order by a.n) - 1) / 50 as batch
                from (
                    select %2$s as event_id, %3$s as event_type, d.due, coalesce(d.due, least(%5$s, now())) as ready_at,
                        row_number() over (order by %5$s, %2$s) as n
                    from %4$s a
                    cross join lateral (select case when %6$s > now() then %6$s end as due) d
                    where %7$s and %8$s <= %9$s
                ) a
            ) m
            group by m.due, m.event_type, m.batch',
        box.id, id, postbox._inbox_column(box.columns, 'event_type', 'a', 'text'), box.relation,
        postbox._inbox_column(box.columns, 'received_at', 'a', 'timestamptz'), postbox._inbox_column(box.columns, 'visible_at', 'a', 'timestamptz'),
        condition, tried, box.max_retries);
    get diagnostics taken = row_count;
    return taken;
end
$function$;
comment on function postbox._take_over_pending(postbox.inbox, text) is 'Private: hands out what an adopted table holds';

create or replace function postbox.enable_inbox_tracking(
    inbox_table     regclass,
    name            text     default null,
    event_id        text     default null,
    event_type      text     default null,
    source          text     default null,
    aggregate_id    text     default null,
    sequence_num    text     default null,
    priority        text     default null,
    payload         text     default null,
    headers         text     default null,
    received_at     text     default null,
    visible_at      text     default null,
    trace_id        text     default null,
    processed_at    text     default null,
    error           text     default null,
    retry_count     text     default null,
    pending         text     default null,
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
    inbox_name text;
    schema name;
    columns jsonb;
    twice text;
    box postbox.inbox;
begin
    perform postbox._require_read_committed(format('%s is to become an inbox', coalesce(inbox_table::text, 'a table')));
    perform postbox._check_inbox_table(inbox_table);
    select coalesce(name, c.relname), n.nspname into inbox_name, schema
        from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = inbox_table;
    perform postbox._check_inbox_name(inbox_name, schema);
    perform postbox._check_inbox_settings(inbox_name, max_retries, retention, dedup_window, dead_retention, failure_policy, style, backoff_initial, backoff_max);
    if pending not in ('all', 'none') then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('pending is "%s", must be all or none', pending),
            hint = 'Whether the messages that the table holds are to be handed out. Left out: those without processed_at.';
    end if;

    -- From here to the commit nobody writes to the table.
    execute format('lock table %s in share row exclusive mode', inbox_table);
    if exists (select from postbox.inbox i where i.relation = inbox_table) then
        raise exception using errcode = 'duplicate_object',
            message = format('%s is an inbox already', inbox_table),
            hint = 'To change its columns, call postbox.drop_inbox first: it leaves an adopted table as it was.';
    end if;
    select jsonb_object_agg(r.role, r.found) filter (where r.found is not null) into columns
        from (
            select s.role, postbox._adopted_column(inbox_table, s.role, s.given, s.types, s.is_needed) as found
            from (values
                ('event_id',     event_id,     '{uuid,text,character varying,bigint,integer}'::text[], true),
                ('event_type',   event_type,   '{text,character varying}',                             false),
                ('source',       source,       '{text,character varying}',                             false),
                ('aggregate_id', aggregate_id, '{text,character varying,uuid,bigint,integer}',         false),
                ('sequence_num', sequence_num, '{bigint,integer}',                                     false),
                ('priority',     priority,     '{integer,smallint}',                                   false),
                ('payload',      payload,      '{jsonb,json,text,character varying,bytea}',            false),
                ('headers',      headers,      '{jsonb,json}',                                         false),
                ('received_at',  received_at,  '{timestamp with time zone,timestamp without time zone}', false),
                ('visible_at',   visible_at,   '{timestamp with time zone}',                           false),
                ('trace_id',     trace_id,     '{text,character varying,uuid}',                        false),
                ('processed_at', processed_at, '{timestamp with time zone,timestamp without time zone}', style = 'update'),
                ('error',        error,        '{text,character varying}',                             false),
                ('retry_count',  retry_count,  '{integer,smallint,bigint}',                            false)
            ) as s(role, given, types, is_needed)
        ) r;
    select c.value into twice from jsonb_each_text(columns) c group by c.value having count(*) > 1 limit 1;
    if found then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('column "%s" of table %s is named for more than one part of a message', twice, inbox_table),
            hint = 'Name each column once; with '''' the messages have no such part.';
    end if;
    if not exists (
        select from pg_index x join pg_attribute a on a.attrelid = x.indrelid and a.attnum = x.indkey[0]
        where x.indrelid = inbox_table and x.indisunique and x.indisvalid and x.indimmediate and x.indnkeyatts = 1 and x.indpred is null
          and a.attname = columns ->> 'event_id'
    ) then
        raise exception using errcode = 'invalid_table_definition',
            message = format('column "%s" of table %s is not unique', columns ->> 'event_id', inbox_table),
            detail = 'It needs a primary key, or a unique index on this column alone that is neither partial nor deferrable.',
            hint = format('ALTER TABLE %s ADD UNIQUE (%I).', inbox_table, columns ->> 'event_id');
    end if;
    if pending is null and not columns ? 'processed_at' then
        execute format('select ''x'' from %s limit 1', inbox_table) into twice;
        if twice is not null then
            raise exception using errcode = 'invalid_parameter_value',
                message = format('table %s holds messages, and no column says which of them are processed', inbox_table),
                hint = 'Say pending => ''all'' or pending => ''none'', or name the column: processed_at => ''...''.';
        end if;
    end if;

    insert into postbox.inbox (
        name, relation, managed, style, columns, max_retries, backoff_initial, backoff_max, retention, dedup_window, dead_retention, failure_policy
    ) values (
        inbox_name, inbox_table, false, enable_inbox_tracking.style, columns, enable_inbox_tracking.max_retries, enable_inbox_tracking.backoff_initial,
        enable_inbox_tracking.backoff_max, enable_inbox_tracking.retention, enable_inbox_tracking.dedup_window, enable_inbox_tracking.dead_retention,
        enable_inbox_tracking.failure_policy
    );
    perform postbox._arm_inbox(inbox_name);
    select * into strict box from postbox.inbox i where i.name = inbox_name;
    if pending is distinct from 'none' then
        perform postbox._take_over_pending(box, pending);
    end if;
    return inbox_table;
end
$function$;
comment on function postbox.enable_inbox_tracking(regclass, text, text, text, text, text, text, text, text, text, text, text, text, text, text, text, text,
    int, interval, interval, text, interval, text, interval, interval) is
    'Makes an existing table an inbox; columns that are not named are those of create_inbox, as far as the table has them, and an empty name: it has none';

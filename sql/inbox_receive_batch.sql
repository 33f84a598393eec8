-- Receiving many messages by one call: nothing is done for each but the insertion.

create or replace function postbox.inbox_receive_batch(
    inbox         text,
    event_ids     text[],
    payloads      jsonb[],
    event_types   text[]        default null,
    sources       text[]        default null,
    aggregate_ids text[]        default null,
    sequence_nums bigint[]      default null,
    priorities    int[]         default null,
    headers       jsonb[]       default null,
    visible_at    timestamptz[] default null,
    trace_ids     text[]        default null,
    out received  int, out duplicates int, out conflicts int
)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set postbox.receiving = 'batch'
    set enable_seqscan = off
    set plan_cache_mode = force_generic_plan
as $function$
declare
    box constant postbox.inbox := postbox._inbox(inbox);
begin
    if event_ids is null or cardinality(event_ids) <> all (array[cardinality(payloads), cardinality(event_types), cardinality(sources), cardinality(aggregate_ids),
        cardinality(sequence_nums), cardinality(priorities), cardinality(headers), cardinality(visible_at), cardinality(trace_ids)])
    then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('the arrays of messages for inbox "%s" are not equally long, or event_ids is NULL', box.name),
            hint = 'Each array has one element for each message, in the same order; an array that is NULL has none for any.';
    end if;
    execute box.received_sql into received, duplicates, conflicts
        using event_ids, payloads, event_types, sources, aggregate_ids, sequence_nums, priorities, headers, visible_at, trace_ids;
end
$function$;
comment on function postbox.inbox_receive_batch(text, text[], jsonb[], text[], text[], text[], bigint[], int[], jsonb[], timestamptz[], text[]) is
    'Inserts messages as the caller, each array with an element for each: how many were received, were there already, or are there with another payload';

-- Aggregates shared out among workers that do not claim, each of which reads its part only.

create or replace function postbox.inbox_is_my_partition(aggregate_id text, worker int, total int) returns boolean
    language plpgsql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $function$
begin
    if total is null or total < 1 or worker is null or worker not between 0 and total - 1 then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('worker %s of %s does not exist', coalesce(worker::text, 'NULL'), coalesce(total::text, 'NULL')),
            hint = 'Workers are counted from 0: with a total of 4 they are 0, 1, 2 and 3.';
    end if;
    -- The hash that hash partitions are made by, so it stays as it is in every version. What has no aggregate is for the first one.
    return coalesce(mod(mod(hashtextextended(aggregate_id collate "C", 0), total) + total, total), 0) = worker;
end
$function$;
comment on function postbox.inbox_is_my_partition(text, int, int) is
    'Whether an aggregate belongs to worker 0 to total - 1: to the same one always, and to one only';

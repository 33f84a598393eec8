-- How much WAL a group's slot may hold back. Beyond it there is an alert and, if told so, the slot is dropped rather than the
-- disk filled; the group is recovered from the outbox then.

create or replace function postbox._check_wal_budget(group_name text, wal_budget bigint, over_budget text) returns void
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
as $function$
begin
    if wal_budget <= 0 then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('the WAL budget of consumer group "%s" is %s bytes, must be more than 0', group_name, wal_budget),
            hint = 'For instance 10737418240 for 10 GB; NULL sets no limit.';
    end if;
    if over_budget is null or over_budget not in ('alert', 'drop') then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('over_budget of consumer group "%s" is %s', group_name, coalesce('"' || over_budget || '"', 'NULL')),
            hint = 'It is alert, or drop: the slot is dropped rather than the disk filled, and the group recovered later.';
    end if;
    if over_budget = 'drop' and wal_budget is null then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('consumer group "%s" is to drop its slot beyond a WAL budget and has none', group_name),
            hint = 'Give wal_budget => as well, in bytes.';
    end if;
end
$function$;
comment on function postbox._check_wal_budget(text, bigint, text) is 'Private: refuses budgets that cannot be meant';

create or replace function postbox.set_wal_budget(group_name text, wal_budget bigint, over_budget text default 'alert') returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    perform postbox._check_wal_budget(group_name, wal_budget, over_budget);
    update postbox.consumer_group g
        set wal_budget = set_wal_budget.wal_budget, over_budget = set_wal_budget.over_budget
        where g.name = group_name;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('consumer group %s does not exist', coalesce('"' || group_name || '"', 'NULL')),
            hint = 'The view postbox.consumer_groups lists the groups.';
    end if;
end
$function$;
comment on function postbox.set_wal_budget(text, bigint, text) is 'How many bytes of WAL a group may hold back, NULL for any number, and what happens beyond: alert or drop';

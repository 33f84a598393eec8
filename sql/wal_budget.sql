-- How much WAL a group's slot may hold back. Beyond it there is an alert and, if told so, the slot is dropped rather than the
-- disk filled; the group is recovered from the outbox then.

-- What waits in a slot for these is lost with it: rows that cannot be delivered again, or whose table is gone.
create or replace function postbox._unrepeatable(relations regclass[]) returns text
    language sql stable
    begin atomic
        select string_agg(distinct case when m.outbox is null then coalesce(o.outbox_name, r.relation::text) else format('%I.%I', m.schema, m.name) end, ', ')
        from unnest(relations) as r(relation)
        left join postbox._marker m on m.outbox = r.relation
        left join postbox.consumer_group_outbox o on o.outbox = r.relation
        where m.outbox is null or not postbox._is_replayable(m.outbox, m.arguments);
    end;
comment on function postbox._unrepeatable(regclass[]) is 'Private: which of these outboxes cannot be delivered again; NULL: all can';

create or replace function postbox._check_wal_budget(group_name text, wal_budget bigint, over_budget text, relations regclass[]) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    -- Not asked for nothing: it waits for those who change the table.
    unrepeatable constant text := case when over_budget = 'drop' then postbox._unrepeatable(relations) end;
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
    if unrepeatable is not null then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('the slot of consumer group "%s" cannot be dropped beyond a WAL budget: %s cannot be delivered again', group_name, unrepeatable),
            detail = 'What waits in the slot is all that there is of events of a dropped outbox, or of one without seq and xid.',
            hint = 'Leave over_budget at alert; or adopt the table with seq => and xid =>; or make the group anew without it.';
    end if;
end
$function$;
comment on function postbox._check_wal_budget(text, bigint, text, regclass[]) is 'Private: refuses budgets that cannot be meant';

create or replace function postbox.set_wal_budget(group_name text, wal_budget bigint, over_budget text default 'alert') returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
begin
    perform postbox._durable();
    perform postbox._check_wal_budget(group_name, wal_budget, over_budget,
        array(select o.outbox from postbox.consumer_group_outbox o where o.group_name = set_wal_budget.group_name));
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

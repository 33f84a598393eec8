-- Settings of an inbox that may change while it is at work: each is looked up when it is needed. Two are written elsewhere too: whether ids outlive their
-- messages in the triggers, max_retries in style update in the trigger, the views, and what workers ask for.

create or replace function postbox.set_inbox(
    inbox           text,
    max_retries     int      default null,
    retention       interval default null,
    dedup_window    interval default null,
    failure_policy  text     default null,
    dead_retention  interval default null,
    keep_dead       boolean  default false,
    backoff_initial interval default null,
    backoff_max     interval default null,
    gap_alert_after interval default null
) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box postbox.inbox;
    made postbox.inbox;
    changes jsonb;
    triggers_differ boolean;
begin
    -- Others who set something come after it.
    perform from postbox.inbox i where i.name = set_inbox.inbox for no key update;
    box := postbox._inbox(inbox);
    if keep_dead and dead_retention is not null then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('dead_retention of inbox "%s" is to be %s, and keep_dead true', box.name, dead_retention),
            hint = 'Give one of the two: with keep_dead => true dead letters are kept until somebody replays or discards them.';
    end if;
    if gap_alert_after is not null then
        perform postbox._ordered_inbox(box);
        perform postbox._check_gap_alert_after(box.name, gap_alert_after);
    end if;
    made := box;
    made.max_retries := coalesce(max_retries, box.max_retries);
    made.retention := coalesce(retention, box.retention);
    made.dedup_window := coalesce(dedup_window, box.dedup_window);
    made.failure_policy := coalesce(failure_policy, box.failure_policy);
    made.dead_retention := case when keep_dead then null else coalesce(dead_retention, box.dead_retention) end;
    made.backoff_initial := coalesce(backoff_initial, box.backoff_initial);
    made.backoff_max := coalesce(backoff_max, box.backoff_max);
    made.gap_alert_after := coalesce(gap_alert_after, box.gap_alert_after);
    perform postbox._check_inbox_settings(box.name, made.max_retries, made.retention, made.dedup_window, made.dead_retention, made.failure_policy, box.style,
        made.backoff_initial, made.backoff_max);
    if box.style = 'update' and made.max_retries <> box.max_retries then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('max_retries of inbox "%s" is %s and cannot change: it is of style "%s"', box.name, box.max_retries, box.style),
            hint = 'Which messages are dead letters, and what its workers ask for, goes by it. Make another inbox with the new one, and let this one run empty.';
    end if;
    select jsonb_object_agg(n.key, n.value) into changes
        from jsonb_each(to_jsonb(made)) n join jsonb_each(to_jsonb(box)) o on o.key = n.key where n.value <> o.value;
    if changes is null then
        return false;
    end if;
    -- Nobody looks for an id as it was done until now once maintenance goes by the new settings: who began before is waited for.
    triggers_differ := (made.dedup_window > made.retention) <> (box.dedup_window > box.retention);
    if triggers_differ then
        perform postbox._alone_with_inbox(inbox);
    end if;
    update postbox.inbox i
        set max_retries = made.max_retries, retention = made.retention, dedup_window = made.dedup_window, failure_policy = made.failure_policy,
            dead_retention = made.dead_retention, backoff_initial = made.backoff_initial, backoff_max = made.backoff_max, gap_alert_after = made.gap_alert_after
        where i.id = box.id;
    if triggers_differ then
        perform postbox._arm_inbox(box.name);
    end if;
    insert into postbox.audit (action, subject, detail) values ('inbox_set', box.name, changes);
    return true;
end
$function$;
comment on function postbox.set_inbox(text, int, interval, interval, text, interval, boolean, interval, interval, interval) is
    'Changes settings of an inbox; NULL leaves one as it is, keep_dead takes dead_retention away. False: nothing to change';

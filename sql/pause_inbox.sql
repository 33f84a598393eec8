-- A pause stops the handing out of messages, not their coming in, and not those who work on some already.

create or replace function postbox._set_inbox_paused(inbox text, tier text, paused boolean) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box constant postbox.inbox := postbox._inbox(inbox);
begin
    if box.style = 'update' then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('inbox "%s" is of style "%s" and cannot be paused or resumed', box.name, box.style),
            hint = 'Stop its workers, and start them again: they lock rows of the table and ask nobody. What comes in meanwhile waits.';
    end if;
    if tier is null then
        update postbox.inbox i
            set paused_at = case when paused then clock_timestamp() end
            where i.id = box.id and (i.paused_at is not null) <> paused;
    else
        if not exists (select from postbox.inbox_tier t where t.inbox = box.id and t.name = _set_inbox_paused.tier) then
            raise exception using errcode = 'undefined_object',
                message = format('inbox "%s" has no tier "%s"', box.name, tier),
                hint = 'postbox.enable_inbox_priority gives an inbox tiers; leave the tier out for the whole inbox.';
        end if;
        update postbox.inbox_tier t
            set paused_at = case when paused then clock_timestamp() end
            where t.inbox = box.id and t.name = _set_inbox_paused.tier and (t.paused_at is not null) <> paused;
    end if;
    if not found then
        return false;
    end if;
    insert into postbox.audit (action, subject, detail)
        values (case when paused then 'inbox_paused' else 'inbox_resumed' end, box.name, jsonb_strip_nulls(jsonb_build_object('tier', tier)));
    return true;
end
$function$;
comment on function postbox._set_inbox_paused(text, text, boolean) is 'Private: pause_inbox and resume_inbox';

create or replace function postbox.pause_inbox(inbox text, tier text default null) returns boolean
    language sql volatile
    begin atomic
        select postbox._set_inbox_paused(inbox, tier, true);
    end;
comment on function postbox.pause_inbox(text, text) is
    'From now on nothing of an inbox, or of one tier of it, is handed out; what workers have they keep. False: it is paused already';

create or replace function postbox.resume_inbox(inbox text, tier text default null) returns boolean
    language sql volatile
    begin atomic
        select postbox._set_inbox_paused(inbox, tier, false);
    end;
comment on function postbox.resume_inbox(text, text) is 'Lets a paused inbox, or a paused tier, go on; false: it is not paused';

-- Alerts go to whoever listens to the channel postbox_alert. What happens once is told once; a condition is told when it has
-- held for long enough, and when it is over.

create or replace function postbox._alert(kind text, subject text, detail jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    message constant jsonb := jsonb_build_object('kind', kind, 'subject', subject, 'at', clock_timestamp(), 'detail', detail);
begin
    -- NOTIFY carries less than 8000 bytes.
    if octet_length(message::text) < 8000 then
        perform pg_notify('postbox_alert', message::text);
    else
        perform pg_notify('postbox_alert', jsonb_build_object('kind', kind, 'subject', left(subject, 500), 'at', clock_timestamp(),
            'detail', jsonb_build_object('left_out_bytes', octet_length(detail::text)))::text);
    end if;
end
$function$;
comment on function postbox._alert(text, text, jsonb) is 'Private: tells the listeners of postbox_alert: kind, subject, at, detail; in less than 8000 bytes';

-- Called in every run for every subject. When `same` changes, the condition begins anew.
create or replace function postbox._watch(kind text, subject text, holds boolean, lasts interval, detail jsonb, same text default null) returns text
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    known postbox.alert;
begin
    select * into known from postbox.alert a where a.kind = _watch.kind and a.subject = _watch.subject;
    if known.kind is not null and (not holds or known.detail ->> 'same' is distinct from same) then
        delete from postbox.alert a where a.kind = _watch.kind and a.subject = _watch.subject;
        if known.alerted_at is not null then
            perform postbox._alert(kind, subject, jsonb_build_object('cleared', true, 'since', known.since));
        end if;
        if not holds then
            return case when known.alerted_at is not null then 'cleared' end;
        end if;
        known := null;
    end if;
    -- NULL: it cannot be told now.
    if holds is not true then
        return null;
    end if;
    if known.kind is null then
        insert into postbox.alert (kind, subject, since, detail)
            values (_watch.kind, _watch.subject, clock_timestamp(), coalesce(_watch.detail, '{}') || jsonb_strip_nulls(jsonb_build_object('same', same)))
            returning * into known;
    end if;
    if known.alerted_at is not null or clock_timestamp() < known.since + lasts then
        return null;
    end if;
    update postbox.alert a set alerted_at = clock_timestamp() where a.kind = _watch.kind and a.subject = _watch.subject;
    perform postbox._alert(kind, subject, coalesce(detail, '{}') || jsonb_build_object('since', known.since));
    return 'alerted';
end
$function$;
comment on function postbox._watch(text, text, boolean, interval, jsonb, text) is
    'Private: alerts when a condition has held for so long, and when it is over; says which of these it did';

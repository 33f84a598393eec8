-- What groups have had of the claims that are stored. A group is past a claim when the event is visible in its checkpoint, which
-- says less than it may have had, never more. Claims go when every group is past them (retention.sql), whoever is first.

create or replace function postbox._outbox_rows_consumed(outbox regclass, outbox_name text)
    returns table (group_name text, claims bigint, rows bigint, bytes bigint, consumed_claims bigint, consumed_rows bigint, consumed_bytes bigint)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    marker record;
begin
    select m.schema, m.name into marker
        from postbox._claim_check k
        join postbox._marker m on m.outbox = k.outbox
        where k.outbox = _outbox_rows_consumed.outbox;
    if not found then
        raise exception using
            errcode = case when outbox is null then 'undefined_table' else 'wrong_object_type' end,
            message = case when outbox is null then format('outbox %s does not exist', coalesce('"' || outbox_name || '"', 'NULL'))
                else format('"%s" is not an outbox with claims', outbox_name) end,
            hint = 'postbox.claim_checks lists the outboxes with claims.';
    end if;
    return query execute format(
        'select g.group_name, count(o.seq), coalesce(sum((o.claim ->> ''rows'')::bigint), 0)::bigint, coalesce(sum((o.claim ->> ''bytes'')::bigint), 0)::bigint,
                count(o.seq) filter (where is_past),
                coalesce(sum((o.claim ->> ''rows'')::bigint) filter (where is_past), 0)::bigint,
                coalesce(sum((o.claim ->> ''bytes'')::bigint) filter (where is_past), 0)::bigint
         from postbox.consumer_group_outbox g
         left join postbox.checkpoint c on c.group_name = g.group_name
         left join %I.%I o on o.claim is not null
         cross join lateral (select coalesce(pg_visible_in_snapshot(o.xid, c.snapshot), false)
             and not exists (select from postbox.backfill b where b.group_name = g.group_name and b.outbox = $1 and not b.finished)) as past(is_past)
         where g.outbox = $1
         group by g.group_name
         order by g.group_name', marker.schema, marker.name)
        using outbox;
end
$function$;
comment on function postbox._outbox_rows_consumed(regclass, text) is 'Private: outbox_rows_consumed with the outbox looked up';

create or replace function postbox.outbox_rows_consumed(outbox text)
    returns table (group_name text, claims bigint, rows bigint, bytes bigint, consumed_claims bigint, consumed_rows bigint, consumed_bytes bigint)
    language sql stable
    begin atomic
        select r.* from postbox._outbox_rows_consumed(to_regclass(outbox), outbox) r;
    end;
comment on function postbox.outbox_rows_consumed(text) is
    'For each group that reads the outbox: how many claims are stored, with how many rows and bytes, and how many of them the group has dealt with for certain. Needs SELECT on the outbox';

-- What is stored can be delivered again (earliest, seek, recover, shared groups) only where rows say in which order and
-- by which transaction they were written. Every outbox made by create_outbox does; an adopted table only if it has such
-- columns. One that takes events which are in the log only has events that no row knows.

create or replace function postbox._is_replayable(outbox oid, arguments text[]) returns boolean
    language sql stable strict parallel safe
    return not 'emit=on' = any (arguments) and exists (
        select
        from pg_attribute a
        left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where a.attrelid = outbox and a.attname = postbox._marker_column(arguments, 'seq') and a.attnum > 0 and not a.attisdropped
          and a.atttypid = 'int8'::regtype and a.attnotnull
          and (a.attidentity <> '' or (a.attgenerated = '' and pg_get_expr(d.adbin, d.adrelid) like '%nextval(%'))
    ) and exists (
        select
        from pg_attribute a
        join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where a.attrelid = outbox and a.attname = postbox._marker_column(arguments, 'xid') and a.attnum > 0 and not a.attisdropped
          and a.atttypid = 'xid8'::regtype and a.attnotnull and a.attgenerated = ''
          and pg_get_expr(d.adbin, d.adrelid) in ('pg_current_xact_id()', 'pg_catalog.pg_current_xact_id()')
    );
comment on function postbox._is_replayable(oid, text[]) is 'Private: whether rows of this outbox can be delivered again';

-- What needs stored rows calls this first. `what` is the subject of the message, for instance 'seek_offset'.
create or replace function postbox._require_replayable(outbox regclass, what text) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    marker record;
begin
    select m.schema, m.name, m.arguments into marker from postbox._marker m where m.outbox = _require_replayable.outbox;
    if not found then
        raise exception using errcode = 'wrong_object_type',
            message = format('%s is not an outbox', coalesce(outbox::text, 'NULL')),
            hint = 'postbox.outbox_status() lists the outboxes.';
    end if;
    if 'emit=on' = any (marker.arguments) then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('%s needs rows that can be delivered again, and outbox "%s.%s" takes events that are in the log only', what, marker.schema, marker.name),
            detail = 'What postbox.emit wrote is stored nowhere.',
            hint = format('To do without such events: SELECT postbox.set_emit(%L, false).', format('%I.%I', marker.schema, marker.name));
    end if;
    if not postbox._is_replayable(outbox, marker.arguments) then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('%s needs rows that can be delivered again, and outbox "%s.%s" has none', what, marker.schema, marker.name),
            detail = 'It has no columns that say in which order and by which transaction its rows were written.',
            hint = 'Add a column "seq bigint GENERATED ALWAYS AS IDENTITY" and a column "xid xid8 NOT NULL DEFAULT pg_current_xact_id()", '
                'call postbox.drop_outbox, then postbox.adopt_outbox(..., seq => ''seq'', xid => ''xid'').';
    end if;
end
$function$;
comment on function postbox._require_replayable(regclass, text) is 'Private: refuses what an outbox without seq and xid cannot do';

-- Changes to the shape of an inbox: whether it has an order, whether it has tiers.

-- For the caller's transaction: no receiver and no worker of the inbox is in the middle of anything, and none begins. Half a second is less
-- than deadlock_timeout: who changes the shape gives up before others are harmed.
create or replace function postbox._alone_with_inbox(inbox text) returns postbox.inbox
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '500ms'
as $function$
declare
    box postbox.inbox;
begin
    perform postbox._require_read_committed('an inbox is changed');
    begin
        perform pg_advisory_xact_lock(postbox._inbox_lock(inbox));
        box := postbox._inbox(inbox);
        execute format('lock table %s in share row exclusive mode', box.relation);
    exception when lock_not_available then
        raise exception using errcode = 'lock_not_available',
            message = format('inbox "%s" is in use', inbox),
            detail = 'A transaction that received, claimed or completed messages of it has not ended for half a second.',
            hint = 'Try again, or when fewer use it. pg_locks shows who holds its locks.';
    end;
    return box;
end
$function$;
comment on function postbox._alone_with_inbox(text) is 'Private: an inbox that nobody else uses until the commit';

create or replace function postbox._lock_inbox(inbox text) returns postbox.inbox
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box constant postbox.inbox := postbox._alone_with_inbox(inbox);
begin
    if box.style <> 'claim' then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('inbox "%s" is of style "%s" and can have neither order nor tiers', box.name, box.style),
            hint = 'They are kept by inbox_claim: only inboxes of style claim have them.';
    end if;
    return box;
end
$function$;
comment on function postbox._lock_inbox(text) is 'Private: the same, of a style that can have order and tiers';

-- The column of a role: the name given, or what the role is mapped to already.
create or replace function postbox._inbox_role_column(box postbox.inbox, role text, col text, types text[]) returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    found_name text;
    found_type text;
    is_deterministic boolean;
begin
    select a.attname, coalesce(nullif(t.typbasetype, 0), t.oid)::regtype::text, coalesce(c.collisdeterministic, true)
        into found_name, found_type, is_deterministic
        from pg_attribute a
        join pg_type t on t.oid = a.atttypid
        left join pg_collation c on c.oid = a.attcollation
        where a.attrelid = box.relation and a.attnum > 0 and not a.attisdropped and a.attname in (col, box.columns ->> role)
        order by a.attname = col desc
        limit 1;
    if found_name is null then
        raise exception using errcode = 'undefined_column',
            message = format('table %s has no column %s for the %s of inbox "%s"', box.relation, coalesce('"' || col || '"', 'NULL'), role, box.name),
            hint = format('Name the column that has it; it is one of type %s.', array_to_string(types, ', '));
    end if;
    if found_type <> all (types) or not is_deterministic then
        raise exception using errcode = 'datatype_mismatch',
            message = format('column "%s" of table %s is of type %s%s: it cannot be the %s of inbox "%s"', found_name, box.relation, found_type,
                case when is_deterministic then '' else ' with a nondeterministic collation' end, role, box.name),
            hint = format('It must be one of %s.', array_to_string(types, ', '));
    end if;
    return found_name;
end
$function$;
comment on function postbox._inbox_role_column(postbox.inbox, text, text, text[]) is 'Private: a column of the table that fits a role';

create or replace function postbox._inbox_view(box postbox.inbox, view_name text) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select format('%I.%I', n.nspname, view_name) from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = (box).relation;
    end;
comment on function postbox._inbox_view(postbox.inbox, text) is 'Private: the full name of a view beside the table';

create or replace function postbox._make_inbox_view(box postbox.inbox, view_name text, query text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    full_name constant text := postbox._inbox_view(box, view_name);
begin
    if octet_length(view_name) > current_setting('max_identifier_length')::int then
        raise exception using errcode = 'invalid_name',
            message = format('the view "%s" of inbox "%s" would have a name of %s bytes, at most %s are possible', view_name, box.name,
                octet_length(view_name), current_setting('max_identifier_length')),
            hint = 'Choose shorter names for the tiers.';
    end if;
    if to_regclass(full_name) is not null then
        raise exception using errcode = 'duplicate_table',
            message = format('relation "%s", which is to be a view of inbox "%s", exists already', full_name, box.name),
            hint = 'Rename that relation' || case when starts_with(view_name, 'pending_') then ', or choose another name for the tier.' else '.' end;
    end if;
    execute format('create view %s as %s', full_name, query);
    execute format('comment on view %s is %L', full_name, postbox._inbox_view_comment(box, view_name));
end
$function$;
comment on function postbox._make_inbox_view(postbox.inbox, text, text) is 'Private: makes a view beside the table';

-- What somebody has put in its place stays.
create or replace function postbox._drop_inbox_view(box postbox.inbox, view_name text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    full_name constant text := postbox._inbox_view(box, view_name);
begin
    if to_regclass(full_name) in (select v from postbox._inbox_views(box) v) then
        execute format('drop view %s', full_name);
    end if;
end
$function$;
comment on function postbox._drop_inbox_view(postbox.inbox, text) is 'Private: drops a view beside the table, if it is there';

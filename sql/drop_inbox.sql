-- Undoes create_inbox (the table goes, with its messages) or enable_inbox_tracking (the table stays as it was before).

-- Whether parts of an inbox lie in a schema: the one of its table, or where that was when they were made. If the table is gone they may be anywhere.
create or replace function postbox._is_inbox_schema(box postbox.inbox, schema oid) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select coalesce((select c.relnamespace = schema or coalesce(schema = to_regnamespace(quote_ident((parse_ident((box).armed_as))[1])), false)
            from pg_class c where c.oid = (box).relation), true);
    end;
comment on function postbox._is_inbox_schema(postbox.inbox, oid) is 'Private: whether the parts of an inbox may lie in a schema';

-- The comment of a view of that name, by which it is known from what others have given the name to.
create or replace function postbox._inbox_view_comment(box postbox.inbox, view_name text) returns text
    language sql immutable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select format(case
                when view_name = 'pending_' || (box).name then 'Messages of inbox %1$s that are not processed yet'
                when view_name = 'dlq_' || (box).name then 'Messages of inbox %1$s that were given up, and those that wait behind them'
                when view_name = 'messages_' || (box).name then 'The table of inbox %1$s, with what has become of the messages'
                when view_name = 'stats_' || (box).name then 'What inbox %1$s has done, by event_type'
                when view_name = 'next_' || (box).name then 'The messages of inbox %1$s that are handed out next, one of each aggregate'
                when view_name = 'gaps_' || (box).name then 'The sequence numbers that inbox %1$s waits for'
                when starts_with(view_name, t.prefix) then 'The messages of tier %2$s of inbox %1$s that are not processed' end,
            (box).name, substr(view_name, length(t.prefix) + 1))
        from (select 'pending_' || (box).name || '_' as prefix) t;
    end;
comment on function postbox._inbox_view_comment(postbox.inbox, text) is 'Private: what is said of a view of an inbox';

create or replace function postbox._inbox_views(box postbox.inbox) returns setof regclass
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select c.oid::regclass
        from pg_class c
        -- By what costs little first: there may be many views.
        where c.relkind = 'v' and strpos(c.relname, '_' || (box).name) > 0 and postbox._is_inbox_schema(box, c.relnamespace)
          and obj_description(c.oid, 'pg_class') = postbox._inbox_view_comment(box, c.relname);
    end;
comment on function postbox._inbox_views(postbox.inbox) is 'Private: the views that were made for an inbox';

-- The functions that _arm_inbox made; its triggers call them, unless the table is gone.
create or replace function postbox._inbox_functions(box postbox.inbox) returns setof regprocedure
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select p.oid::regprocedure from pg_proc p
        where p.proname = any (array[(box).name || '_refused', (box).name || '_arriving', (box).name || '_arrived', (box).name || '_updated',
                (box).name || '_claimed', (box).name || '_heads', (box).name || '_receive'])
          and postbox._is_inbox_schema(box, p.pronamespace)
          and obj_description(p.oid, 'pg_proc') = any (array[format('Trigger of inbox %s, made by Postbox', (box).name),
              format('What inbox_claim returns of inbox %s, made by Postbox', (box).name),
              format('What inbox_receive_batch does in inbox %s, made by Postbox', (box).name),
              format('What comes next in the lanes of inbox %s, made by Postbox', (box).name)]);
    end;
comment on function postbox._inbox_functions(postbox.inbox) is 'Private: the trigger functions of an inbox';

create or replace function postbox._inbox_parts(box postbox.inbox) returns table (name text, owner name, owner_id oid, namespace oid)
    language sql stable
    set search_path = pg_catalog, pg_temp
    begin atomic
        select 'FUNCTION ' || p.oid::regprocedure, pg_get_userbyid(p.proowner), p.proowner, p.pronamespace
            from pg_proc p where p.oid in (select f from postbox._inbox_functions(box) f)
        union all
        select 'VIEW ' || v.oid::regclass, pg_get_userbyid(v.relowner), v.relowner, v.relnamespace
            from pg_class v where v.oid in (select w from postbox._inbox_views(box) w);
    end;
comment on function postbox._inbox_parts(postbox.inbox) is 'Private: the functions and views of an inbox, and whose they are';

create or replace function postbox.drop_inbox(name text, if_exists boolean default false, cascade boolean default false) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    box postbox.inbox;
    is_there boolean;
    is_renamed boolean;
    holds boolean;
    foreign_parts record;
    dropped text;
    how constant text := case when cascade then 'cascade' else 'restrict' end;
begin
    if name is null or if_exists is null or cascade is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = 'drop_inbox needs a name, and no argument of it can be NULL',
            hint = 'postbox.inbox_status() lists the inboxes.';
    end if;
    perform postbox._require_read_committed(format('inbox "%s" is to be dropped', name));
    select * into box from postbox.inbox i where i.name = drop_inbox.name;
    is_there := exists (select from pg_class c where c.oid = box.relation);
    if is_there and not (select pg_has_role(c.relowner, 'usage') from pg_class c where c.oid = box.relation) then
        raise exception using errcode = 'insufficient_privilege',
            message = format('table %s of inbox "%s" belongs to "%s"', box.relation, name, (select pg_get_userbyid(c.relowner) from pg_class c where c.oid = box.relation)),
            hint = 'Let its owner call this, or a member of that role.';
    end if;
    select string_agg(distinct format('"%s"', o.owner), ', ') as owners, string_agg(format('%s of "%s"', o.name, o.owner), ', ' order by o.name) as list,
            string_agg(format('ALTER %s OWNER TO %I', o.name, current_user), '; ' order by o.name) as remedy
        into foreign_parts
        from postbox._inbox_parts(box) o
        where not pg_has_role(o.owner_id, 'usage') and not pg_has_role((select n.nspowner from pg_namespace n where n.oid = o.namespace), 'usage');
    if foreign_parts.list is not null then
        raise exception using errcode = 'insufficient_privilege',
            message = format('parts of inbox "%s" belong to %s, who could drop them', name, foreign_parts.owners),
            detail = foreign_parts.list || '.',
            hint = format('Let a superuser or their owner give them to you, and call this again: %s', foreign_parts.remedy);
    end if;
    if is_there then
        -- Before its row, as who inserts or claims has the table first.
        execute format('lock table %s in access exclusive mode', box.relation);
    end if;
    select * into box from postbox.inbox i where i.name = drop_inbox.name for update;
    if not found then
        if if_exists then
            return;
        end if;
        raise exception using errcode = 'undefined_object',
            message = format('inbox "%s" does not exist', name),
            hint = 'postbox.inbox_status() lists the inboxes; with if_exists => true this is no error.';
    end if;
    is_renamed := box.armed_as <> box.relation::text;
    if is_there and box.managed and not cascade then
        -- One that was renamed is asked under its old name.
        if box.ordered_at is not null and not is_renamed then
            -- What is done with and stands in its lane still counts as nothing.
            perform postbox._finish_lanes(box, null, true);
        end if;
        holds := exists (select from postbox.inbox_batch b where b.inbox = box.id)
            or exists (select from postbox.inbox_lane l where l.inbox = box.id and l.arrived <> '{}')
            or exists (select from postbox.inbox_dead d where d.inbox = box.id);
        if not holds and box.style = 'update' then
            -- What pending_<inbox> shows.
            execute format('select exists (select from %s r where r.%I is null and coalesce(%s, 0) <= %s)', box.relation, box.columns ->> 'processed_at',
                postbox._inbox_column(box.columns, 'retry_count', 'r', 'int'), box.max_retries) into holds;
        end if;
        if holds then
            raise exception using errcode = 'dependent_objects_still_exist',
                message = format('inbox "%s" holds messages that are not processed, or dead letters', name),
                hint = case when is_renamed then format('Its table was renamed: call postbox.repair_inbox(%L) first. ', name) else '' end
                    || format('Process, replay or discard them first; postbox.drop_inbox(%L, cascade => true) drops it with all that it holds.', name);
        end if;
    end if;

    select string_agg(v::text, ', ') into dropped from postbox._inbox_views(box) v;
    if dropped is not null then
        execute format('drop view %s %s', dropped, how);
    end if;
    if is_there and box.managed then
        execute format('drop table %s %s', box.relation, how);
    elsif is_there then
        for dropped in select t.tgname from pg_trigger t where t.tgrelid = box.relation and t.tgname ~ '^postbox_inbox_' loop
            execute format('drop trigger %I on %s', dropped, box.relation);
        end loop;
        for dropped in select x.indexrelid::regclass from pg_index x
            where x.indrelid = box.relation and obj_description(x.indexrelid, 'pg_class') = format('Of inbox %s, made by Postbox', box.name)
        loop
            execute format('drop index %s', dropped);
        end loop;
    end if;
    for dropped in select f from postbox._inbox_functions(box) f loop
        execute format('drop function %s', dropped);
    end loop;
    delete from postbox.inbox_batch b where b.inbox = box.id;
    delete from postbox.inbox_lane l where l.inbox = box.id;
    delete from postbox.inbox_dead d where d.inbox = box.id;
    delete from postbox.inbox_seen s where s.inbox = box.id;
    delete from postbox.inbox_floor f where f.inbox = box.id;
    delete from postbox.inbox i where i.id = box.id;
end
$function$;
comment on function postbox.drop_inbox(text, boolean, boolean) is
    'Drops an inbox: one made by create_inbox with its table, refused while it holds messages that are not processed unless cascade; an adopted table stays';

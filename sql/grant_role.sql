-- Who gets what of a single outbox or inbox, and the verbs that give and take it. What a role may everywhere: role_rights.sql.

-- A column that is `serial` needs its sequence too, an identity column does not.
create or replace function postbox._owned_sequences(target regclass) returns table (sequence regclass, object text)
    language sql stable strict parallel safe
    begin atomic
        select s.oid::regclass, format('sequence %I.%I', n.nspname, s.relname)
        from pg_depend d
        join pg_class s on s.oid = d.objid and s.relkind = 'S'
        join pg_namespace n on n.oid = s.relnamespace
        where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = target and d.deptype = 'a';
    end;
comment on function postbox._owned_sequences(regclass) is 'Private: the sequences that an INSERT into a table needs';

-- What an INSERT needs.
create or replace function postbox._publisher_rights(outbox regclass)
    returns table (right_name text, object text)
    language sql stable strict parallel safe
    begin atomic
        select 'usage', format('schema %I', m.schema) from postbox._marker m where m.outbox = _publisher_rights.outbox
        union all
        select 'insert', format('table %I.%I', m.schema, m.name) from postbox._marker m where m.outbox = _publisher_rights.outbox
        union all
        select 'insert', format('table %s', l.waiting) from postbox.outbox_later l where l.outbox = _publisher_rights.outbox
        union all
        select 'insert', format('table %s', o.published) from postbox.outbox_once o where o.outbox = _publisher_rights.outbox
        union all
        select 'usage', s.object from postbox._owned_sequences(_publisher_rights.outbox) s
        union all
        -- A claim is written before its event, under its seq.
        select r.right_name, r.object
        from postbox._claim_check k
        cross join lateral (values ('insert', format('table %I.%I', k.schema, k.name)), ('usage', format('sequence %s', k.sequence::regclass))) as r(right_name, object)
        where k.outbox = _publisher_rights.outbox;
    end;
comment on function postbox._publisher_rights(regclass) is 'Private: what publishing to an outbox needs';

-- What maintain() does to an outbox: it reads and truncates leaves, moves the sequence, and publishes what was delayed. Of an inbox it removes messages.
create or replace function postbox._maintainer_rights(outbox regclass)
    returns table (right_name text, object text)
    language sql stable strict parallel safe
    begin atomic
        select 'usage', format('schema %I', m.schema) from postbox._marker m where m.outbox = _maintainer_rights.outbox
        union all
        select 'select, truncate', format('table %I.%I', m.schema, m.name) from postbox._marker m where m.outbox = _maintainer_rights.outbox
        union all
        select 'select, truncate', format('table %s', l.leaf_name) from postbox._leaf l where l.outbox = _maintainer_rights.outbox
        union all
        select 'select, truncate', format('table %s', l.claims_leaf_name) from postbox._leaf l where l.outbox = _maintainer_rights.outbox and l.claims_leaf is not null
        union all
        select 'select, update, delete', format('table %s', l.waiting) from postbox.outbox_later l where l.outbox = _maintainer_rights.outbox
        union all
        select 'insert', format('table %I.%I', m.schema, m.name)
        from postbox._marker m join postbox.outbox_later l on l.outbox = m.outbox where m.outbox = _maintainer_rights.outbox
        union all
        select 'usage', s.object from postbox.outbox_later l cross join lateral postbox._owned_sequences(l.outbox) s where l.outbox = _maintainer_rights.outbox
        union all
        select 'select, delete', format('table %s', o.published) from postbox.outbox_once o where o.outbox = _maintainer_rights.outbox
        union all
        select 'select, update', format('sequence %s', r.sequence::regclass) from postbox._ring r where r.outbox = _maintainer_rights.outbox and r.sequence is not null
        union all
        select r.right_name, r.object
        from postbox.inbox i
        join pg_class c on c.oid = i.relation
        join pg_namespace n on n.oid = c.relnamespace
        cross join lateral (values
            ('usage', format('schema %I', n.nspname)),
            ('select, delete', format('table %I.%I', n.nspname, c.relname)),
            ('select', format('table %I.%I', n.nspname, 'pending_' || i.name))
        ) as r(right_name, object)
        where i.relation = _maintainer_rights.outbox;
    end;
comment on function postbox._maintainer_rights(regclass) is 'Private: what maintaining an outbox or inbox needs';

-- What an INSERT into an inbox needs: its trigger looks whether the message is there.
create or replace function postbox._receiver_rights(inbox regclass)
    returns table (right_name text, object text)
    language sql stable strict parallel safe
    begin atomic
        select r.right_name, r.object
        from postbox.inbox i
        join pg_class c on c.oid = i.relation
        join pg_namespace n on n.oid = c.relnamespace
        cross join lateral (values
            ('usage', format('schema %I', n.nspname)),
            ('insert', format('table %I.%I', n.nspname, c.relname)),
            ('select (' || (select string_agg(format('%I', u.col), ', ') from unnest(array[i.columns ->> 'event_id', i.columns ->> 'payload']) as u(col)
                            where u.col is not null) || ')', format('table %I.%I', n.nspname, c.relname))
        ) as r(right_name, object)
        where i.relation = _receiver_rights.inbox
        union all
        select 'usage', s.object from postbox._owned_sequences(_receiver_rights.inbox) s;
    end;
comment on function postbox._receiver_rights(regclass) is 'Private: what receiving into an inbox needs';

-- A worker reads messages; where workers write into the table itself, they may write how it went and no more.
create or replace function postbox._worker_rights(inbox regclass)
    returns table (right_name text, object text)
    language sql stable strict parallel safe
    begin atomic
        select r.right_name, r.object
        from postbox.inbox i
        join pg_class c on c.oid = i.relation
        join pg_namespace n on n.oid = c.relnamespace
        cross join lateral (
            select 'usage' as right_name, format('schema %I', n.nspname) as object
            union all
            select 'select', format('table %I.%I', n.nspname, c.relname)
            union all
            select 'update (' || string_agg(format('%I', i.columns ->> u.role), ', ') || ')', format('table %I.%I', n.nspname, c.relname)
            from unnest('{processed_at,error,retry_count}'::text[]) as u(role)
            where i.style = 'update' and i.columns ? u.role
            having count(*) > 0
        ) r
        where i.relation = _worker_rights.inbox;
    end;
comment on function postbox._worker_rights(regclass) is 'Private: what working on the messages of an inbox needs';

create or replace function postbox._change_role(verb text, role text, grantee regrole, outboxes regclass[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    statement constant text := case verb when 'grant' then 'grant %s on %s to %I' else 'revoke %s on %s from %I' end;
    grantee_name name;
    target regclass;
    rights record;
    is_inbox boolean;
    of_inboxes constant boolean := role in ('receiver', 'worker');
    of_tables constant boolean := of_inboxes or role in ('publisher', 'maintainer');
    noun constant text := case when of_inboxes then 'inbox' else 'outbox' end;
    needed text;
begin
    select r.rolname into grantee_name from pg_roles r where r.oid = grantee;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('role %s does not exist', coalesce('"' || grantee::text || '"', 'NULL')),
            hint = 'Create it first: CREATE ROLE.';
    end if;
    if role is null or role not in ('publisher', 'consumer', 'receiver', 'worker', 'operator', 'monitor', 'maintainer') then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('%s is not one of publisher, consumer, receiver, worker, operator, monitor, maintainer', coalesce('"' || role || '"', 'NULL')),
            hint = format('For instance: postbox.%s_role(''monitor'', %L).', verb, grantee::text);
    end if;
    if of_tables <> (coalesce(cardinality(outboxes), 0) > 0) then
        raise exception using errcode = 'invalid_parameter_value',
            message = case when of_tables then format('a %s needs at least one %s', role, noun)
                else format('the role of a %s is not for single outboxes or inboxes', role) end,
            hint = case when of_tables then format('For instance: postbox.%s_role(%L, %L, ''{orders}'').', verb, role, grantee::text)
                else 'Leave the list out.' end;
    end if;
    foreach target in array coalesce(outboxes, '{}') loop
        is_inbox := exists (select from postbox.inbox i where i.relation = target);
        if target is null or not ((is_inbox and (of_inboxes or role = 'maintainer'))
                or (not of_inboxes and exists (select from postbox._marker m where m.outbox = target))) then
            raise exception using errcode = 'wrong_object_type',
                message = format('%s is not an %s', coalesce('"' || target::text || '"', 'NULL'), noun),
                hint = format('postbox.%s_status() lists the %ses.', noun, noun);
        end if;
    end loop;

    -- What everybody in a role of single tables has stays while the grantee may be in it elsewhere; it gives nothing by itself.
    if verb = 'grant' or not of_tables then
        for rights in select r.right_name, r.object from postbox._role_rights(role) r loop
            execute format(statement, rights.right_name, rights.object, grantee_name);
        end loop;
    end if;
    foreach target in array coalesce(outboxes, '{}') loop
        for rights in
            select r.right_name, r.object
            from (select * from postbox._publisher_rights(target) where role = 'publisher' union all
                  select * from postbox._receiver_rights(target) where role = 'receiver' union all
                  select * from postbox._worker_rights(target) where role = 'worker' union all
                  select * from postbox._maintainer_rights(target) where role = 'maintainer') r
            where verb = 'grant' or r.object not like 'schema %'
        loop
            execute format(statement, rights.right_name, rights.object, grantee_name);
        end loop;
        -- GRANT by somebody who may not grant is a warning only.
        needed := case role when 'publisher' then 'insert' when 'receiver' then 'insert' when 'worker' then 'select'
            else case when exists (select from postbox.inbox i where i.relation = target) then 'delete' else 'truncate' end end;
        if verb = 'grant' and not has_table_privilege(grantee, target, needed) then
            raise exception using errcode = 'insufficient_privilege',
                message = format('role "%s" may not grant %s on %s "%s"', current_user, upper(needed), noun, target),
                hint = 'Let the owner of the table grant it.';
        end if;
    end loop;
    if verb = 'grant' and role in ('consumer', 'operator')
        and not exists (select from pg_roles r where r.oid = grantee and (r.rolreplication or r.rolsuper)) then
        raise warning using
            message = format('role "%s" has no REPLICATION attribute, which %s', grantee_name,
                case role when 'consumer' then 'reading a slot needs' else 'making and dropping consumer groups needs' end),
            hint = format('ALTER ROLE %I REPLICATION. Members of a role do not inherit the attribute: who logs in needs it.', grantee_name);
    end if;
end
$function$;
comment on function postbox._change_role(text, text, regrole, regclass[]) is 'Private: grant_role and revoke_role';

-- The names of roles and outboxes are looked up where the call is parsed, along the caller's path.
create or replace function postbox.grant_role(role text, grantee regrole, outboxes regclass[] default null) returns void
    language sql volatile
    begin atomic
        select postbox._change_role('grant', role, grantee, outboxes);
    end;
comment on function postbox.grant_role(text, regrole, regclass[]) is
    'Grants what a publisher or maintainer (of these outboxes; a maintainer of inboxes too), receiver or worker (of these inboxes), consumer, operator or monitor needs';

create or replace function postbox.revoke_role(role text, grantee regrole, outboxes regclass[] default null) returns void
    language sql volatile
    begin atomic
        select postbox._change_role('revoke', role, grantee, outboxes);
    end;
comment on function postbox.revoke_role(text, regrole, regclass[]) is 'Revokes what grant_role grants';

-- Stateful: the schema that holds everything of Postbox, and nothing of a user.

do $do$
begin
    if exists (select from pg_catalog.pg_namespace where nspname operator(pg_catalog.=) 'postbox') then
        raise exception using errcode = 'duplicate_schema',
            message = 'schema postbox is there already',
            detail = 'It was made by postbox install, or by somebody else.',
            hint = 'Either is enough: what postbox install made works without the extension. To replace it, drop its groups, then DROP SCHEMA postbox CASCADE; outboxes stay as they are.';
    end if;
end
$do$;
create schema postbox;
comment on schema postbox is 'Postbox: transactional outbox for PostgreSQL';

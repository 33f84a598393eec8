-- Stateful: who did to groups and outboxes what cannot be undone.

create table postbox.audit (
    at      timestamptz not null default now(),
    role    text        not null default session_user,
    action  text        not null,
    subject text        not null,
    detail  jsonb
);
comment on table postbox.audit is 'Seeks, recoveries, drops and what maintenance removed: when, by whom, and how it was before';
select pg_extension_config_dump('postbox.audit', '');

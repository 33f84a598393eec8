-- Stateful: where the ids of publish_once are (publish_once.sql).

create table postbox.outbox_once (
    outbox     regclass not null,
    published  regclass not null,
    -- How long an id is known at least.
    kept_for   interval not null,
    constraint outbox_once_pkey primary key (outbox),
    constraint outbox_once_kept_for_check check (kept_for > interval '0')
);
comment on table postbox.outbox_once is 'Outboxes that know the ids of publish_once, and the tables of these';
select pg_extension_config_dump('postbox.outbox_once', '');

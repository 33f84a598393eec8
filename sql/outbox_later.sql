-- Stateful: where delayed events wait (publish_later.sql).

create table postbox.outbox_later (
    outbox  regclass not null,
    waiting regclass not null,
    constraint outbox_later_pkey primary key (outbox)
);
comment on table postbox.outbox_later is 'Outboxes with delayed events, and the tables that these wait in';
select pg_extension_config_dump('postbox.outbox_later', '');

-- Stateful: the schema that holds everything of Postbox, and nothing of a user.

create schema postbox;
comment on schema postbox is 'Postbox: transactional outbox for PostgreSQL';

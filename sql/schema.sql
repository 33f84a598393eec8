-- Stateful: the schema that holds everything of Postbox, and nothing of a user.
\echo Use "CREATE EXTENSION postbox" to load this file. \quit

create schema postbox;
comment on schema postbox is 'Postbox: transactional outbox for PostgreSQL';

-- Stateful: when outboxes took events that are in the log only (set_emit.sql), for who reads the log later and has no catalog of then.
-- It says nothing about the log of another server. A row stays: it is one for each time somebody allowed it.

create table postbox.emit_period (
    outbox oid    not null,
    since  pg_lsn not null,
    until  pg_lsn,
    system_identifier bigint not null,
    -- What the outbox was when that was noted: it may be dropped before its last messages are read.
    schema       text   not null,
    name         text   not null,
    marker       bytea  not null,
    column_names text[] not null,
    column_types oid[]  not null,
    constraint emit_period_pkey primary key (outbox, since, system_identifier)
);
comment on table postbox.emit_period is 'From where to where in the log messages are events of an outbox, for the source pgoutput';
comment on column postbox.emit_period.until is 'NULL: it still takes them';

-- A stored row as the output plugin would have sent it, for those who read an outbox's table instead of its slot. The frame
-- holds one event and stands alone. What only the log knows is not in it: the position is 0/0, the ordinal 0; the time is
-- the row's created_at. Read an ordinary table with FROM ONLY: rows of tables that inherit from it are no events. Columns that have to be printed are printed as the session's settings say (IntervalStyle and the
-- like), as in the stream. Implemented in plugin/src/frame.rs.

create or replace function postbox._frame(outbox regclass, stored record) returns bytea
    language c stable strict parallel safe as 'MODULE_PATHNAME', 'postbox_frame';
comment on function postbox._frame(regclass, record) is 'Private: a row of an outbox as a frame of the output plugin';

create or replace function postbox._frame_sql(outbox regclass, stored text) returns text
    language sql immutable strict parallel safe
    return format('postbox._frame(%s::regclass, %s)', outbox::oid, stored);
comment on function postbox._frame_sql(regclass, text) is 'Private: the expression that makes a frame of a stored row';

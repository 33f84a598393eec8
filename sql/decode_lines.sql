-- Frames as lines of JSON. What a line of JSON looks like is decided in plugin/wire, by which the consumer prints too.

create or replace function postbox._decode_lines(frame bytea) returns bytea[]
    language c stable strict parallel safe as 'MODULE_PATHNAME', 'decode_lines_wrapper';
comment on function postbox._decode_lines(bytea) is 'Private: the events of a frame, one line of native JSON each, in UTF-8';

-- Frames as lines of JSON, of which no member holds what a text or jsonb of the database cannot. What a line looks like is decided in
-- plugin/wire, by which the consumer prints too; the payload is a string, so that it comes out as it was published.

create or replace function postbox._decode_lines(frame bytea) returns bytea[]
    language c stable strict parallel safe as 'MODULE_PATHNAME', 'decode_lines_wrapper';
comment on function postbox._decode_lines(bytea) is 'Private: the events of a frame, one line of native JSON each, in UTF-8, the payload as a string';

-- Frames are read by the output plugin's library, which is not here; the program reads them too.

create or replace function postbox._decode_lines(frame bytea) returns bytea[]
    language plpgsql stable strict parallel safe
    set search_path = pg_catalog, pg_temp
as $function$
begin
    raise exception using errcode = 'feature_not_supported',
        message = 'frames cannot be decoded in this database: its schema postbox was not made by the extension',
        hint = 'For dead letters: postbox dead-letter show.';
end
$function$;
comment on function postbox._decode_lines(bytea) is 'Private: refuses to decode, for want of the library';

-- The extension brings the output plugin along.

create or replace function postbox._default_source() returns text
    language sql immutable parallel safe
    return 'postbox';
comment on function postbox._default_source() is 'Private: the source of groups that were not told one';

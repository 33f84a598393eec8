-- Without the extension there is no output plugin.

create or replace function postbox._default_source() returns text
    language sql immutable parallel safe
    return 'pgoutput';
comment on function postbox._default_source() is 'Private: the source of groups that were not told one';

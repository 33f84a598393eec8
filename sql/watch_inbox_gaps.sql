-- To be replaced.
create or replace function postbox._watch_inbox_gaps() returns table (subject text, outcome text, detail text)
    language sql volatile
    begin atomic
        select null::text, null::text, null::text where false;
    end;
comment on function postbox._watch_inbox_gaps() is 'Private: alerts about gaps';

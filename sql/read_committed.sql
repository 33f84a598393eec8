-- Whoever decides by what others have committed has to see it, also what they commit while a lock is waited for.
create or replace function postbox._require_read_committed(what text) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception using errcode = 'active_sql_transaction',
            message = format('%s in a transaction that is %s', what, current_setting('transaction_isolation')),
            hint = 'It has to see what others commit meanwhile: use READ COMMITTED.';
    end if;
end
$function$;
comment on function postbox._require_read_committed(text) is 'Private: refuses a transaction that goes by an old snapshot';

-- The data of a claim, by reference. A reader asks for some chunks, and then for those behind them: each call is a query of its own
-- that reads no more than it returns, so nothing is held between two, and a reader goes on wherever it stopped.
--
-- A consumer may have an event before its commit is visible to queries. Chunks that are not there are then merely not there yet, and
-- the transaction's id tells: once it is visible, what is not there is gone.

create or replace function postbox._claim_chunks(outbox regclass, outbox_name text, seq bigint, from_chunk int, max_chunks int, xid xid8)
    returns table (chunk int, rows int, data bytea)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
declare
    claim postbox._claim_check;
begin
    if outbox is null then
        -- The event has the name of its time; a group that was made then knows which one it is.
        select k.* into claim from postbox._claim_check k
            where k.outbox = (
                select min(o.outbox::oid) from postbox.consumer_group_outbox o
                join postbox._claim_check c on c.outbox = o.outbox
                where o.outbox_name = (
                    select string_agg(quote_ident(part), '.' order by n) from unnest(parse_ident(_claim_chunks.outbox_name)) with ordinality as p(part, n))
                having count(distinct o.outbox) = 1);
    else
        select k.* into claim from postbox._claim_check k where k.outbox = _claim_chunks.outbox;
    end if;
    if outbox is null and claim.outbox is null then
        raise exception using errcode = 'undefined_table',
            message = format('outbox %s does not exist', coalesce('"' || outbox_name || '"', 'NULL')),
            hint = 'postbox.claim_checks lists the outboxes with claims. Qualify a name whose schema is not in search_path.';
    end if;
    if claim.outbox is null then
        raise exception using errcode = 'wrong_object_type',
            message = format('"%s" is not an outbox with claims', outbox_name),
            hint = 'postbox.claim_checks lists those; postbox.enable_claim_check makes an outbox one.';
    end if;
    if seq is null or from_chunk is null or max_chunks is null or from_chunk < 0 or max_chunks < 1 then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('chunks of claim %s from %s on, %s at most', coalesce(seq::text, 'NULL'), coalesce(from_chunk::text, 'NULL'), coalesce(max_chunks::text, 'NULL')),
            hint = 'The event says the seq of its claim; chunks are counted from 0, and at least one is asked for.';
    end if;
    -- The leaf is named by a constant, so that no other one is locked.
    return query execute format(
        'select c.chunk, c.rows, c.data from %I.%I c where c.seq = $1 and c.chunk >= $2 and ((c.seq >> %s) & 3) = %s order by c.chunk limit $3',
        claim.schema, claim.name, claim.generation_bits, (seq >> claim.generation_bits) & 3)
        using seq, from_chunk, max_chunks;
    if not found and pg_visible_in_snapshot(xid, pg_current_snapshot()) then
        raise exception using errcode = 'no_data_found',
            message = format('claim %s of outbox "%s" has no chunk %s', seq, outbox_name, from_chunk),
            detail = 'Its transaction is committed, so the chunk is not merely late.',
            hint = 'Claims are kept for as long as their events: until every group is past them and postbox.set_retention lets them go. Fetch a claim before its event is acknowledged.';
    end if;
end
$function$;
comment on function postbox._claim_chunks(regclass, text, bigint, int, int, xid8) is 'Private: claim_chunks with the outbox looked up';

create or replace function postbox.claim_chunks(outbox text, seq bigint, from_chunk int default 0, max_chunks int default 64, xid xid8 default null)
    returns table (chunk int, rows int, data bytea)
    language sql stable
    begin atomic
        select c.chunk, c.rows, c.data from postbox._claim_chunks(to_regclass(outbox), outbox, seq, from_chunk, max_chunks, xid) c;
    end;
comment on function postbox.claim_chunks(text, bigint, int, int, xid8) is
    'The next chunks of a claim, in order: none when it has no more, or is not visible yet; with the xid of its event the latter is told from a claim that is gone. Needs SELECT on the claims';

-- Many rows as one event. The rows come from a cursor, so that they need not fit memory, and are packed into chunks: JSON, one row
-- a line, in UTF-8. What stays within the thresholds is an ordinary event with an array of the rows; as soon as it does not, what
-- has been read so far goes to the claims, and so does the rest.

-- The next rows of a cursor. What the query calls finds its names as the caller's path has it.
create or replace function postbox._fetch(rows refcursor, count int, path text) returns setof text
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    statement constant text := format('fetch forward %s from %I', count, rows::text);
begin
    perform set_config('search_path', path, true);
    return query execute statement;
end
$function$;
comment on function postbox._fetch(refcursor, int, text) is 'Private: the next rows of a cursor';

-- Appends to the claim with this seq, and returns where it stands then. A chunk has a bounded number of bytes, so a long row is
-- cut; `rows` counts the rows that end in the data. The checksum goes over all chunks so far: that of each is SHA-256 of the one
-- before it and the chunk's bytes, so a reader can go on in the middle.
create or replace function postbox._append_claim(
    claims regclass, seq bigint, data bytea, is_text boolean, rows int, inout chunk int, inout bytes bigint, inout sha256 bytea
)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    statement constant text := format('insert into %s (seq, chunk, rows, data) values ($1, $2, $3, $4)', claims);
    total constant int := octet_length(data);
    start int := 0;
    size int;
    piece bytea;
begin
    -- A number is what is printed of a table that is gone.
    if claims::text = claims::oid::text then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('table %s, which a large event was to go to, was dropped just now', claims::oid),
            detail = 'The outbox has no claim check any more, or another one.',
            hint = 'Publish it again.';
    end if;
    loop
        -- About half of the largest; a little over is not worth another.
        size := case when total - start <= 65536 then total - start else 32768 end;
        -- Characters stay whole: no chunk of text begins with a byte that goes on with one.
        while is_text and start + size < total and get_byte(data, start + size) & 192 = 128 loop
            size := size - 1;
        end loop;
        piece := case when size = total then data else substr(data, start + 1, size) end;
        start := start + size;
        execute statement using seq, chunk, case when start = total then rows else 0 end, piece;
        chunk := chunk + 1;
        bytes := bytes + size;
        sha256 := sha256(sha256 || piece);
        exit when start = total;
    end loop;
end
$function$;
comment on function postbox._append_claim(regclass, bigint, bytea, boolean, int, int, bigint, bytea) is 'Private: stores data of a claim in chunks';

-- The event of a claim whose chunks are written. `format` says what the data is: rows (JSON, one a line), json, text or bytes.
create or replace function postbox._publish_claim(
    outbox regclass, seq bigint, format text, rows bigint, chunks int, bytes bigint, sha256 bytea,
    type text, key text, headers jsonb, event_id uuid
) returns uuid
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    id uuid := coalesce(event_id, gen_random_uuid());
    stored int;
begin
    execute pg_catalog.format('insert into %s (seq, event_id, type, key, headers, claim) overriding system value values ($1, $2, $3, $4, $5, $6)', outbox)
        using seq, id, type, key, headers,
            jsonb_build_object('seq', seq, 'format', format, 'rows', rows, 'bytes', bytes, 'chunks', chunks, 'sha256', encode(sha256, 'hex'));
    get diagnostics stored = row_count;
    -- A trigger or a rule of the table may have kept it out.
    return case when stored > 0 then id end;
end
$function$;
comment on function postbox._publish_claim(regclass, bigint, text, bigint, int, bigint, bytea, text, text, jsonb, uuid) is 'Private: inserts the event of a claim';

-- Publishes what a cursor of texts gives, each a JSON document without a line break, as one event. `path` is the search_path of
-- whoever opened the cursor.
create or replace function postbox._publish_rows(
    outbox regclass, type text, rows refcursor, key text, headers jsonb, event_id uuid, path text
) returns uuid
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    -- About what a chunk holds, and a page does once that is compressed.
    chunk_bytes constant int := 32768;
    -- Rows are read together in bounded numbers: after short ones there may be long ones.
    most_rows constant int := 256;
    claim postbox._claim_check;
    payload_type oid;
    threshold_rows int;
    threshold_bytes int;
    wanted int := 32;
    fetched_rows int;
    fetched_bytes bigint;
    -- Long rows are not put together: a piece has 1 MiB, and the row that begins in it. By a cursor, which takes one at a time.
    pieces cursor for
        select count(*)::int as rows, convert_to(string_agg(p.line, E'\n' order by p.n) || E'\n', 'UTF8') as data
        from (select f.line, f.n, (sum(octet_length(f.line) + 1) over (order by f.n rows unbounded preceding) - octet_length(f.line) - 1) / 1048576
              from postbox._fetch(rows, wanted, path) with ordinality as f(line, n)) p(line, n, part)
        group by p.part order by p.part;
    -- What may still go inline.
    pending bytea[] := '{}';
    pending_rows int[] := '{}';
    is_claim boolean := false;
    seq bigint;
    total_rows bigint := 0;
    total_bytes bigint := 0;
    -- chunk, bytes and sha256 of what is stored.
    stored record;
    payload text;
begin
    select k.* into claim from postbox._claim_check k where k.outbox = _publish_rows.outbox;
    threshold_rows := coalesce(claim.inline_threshold_rows, 10000);
    threshold_bytes := coalesce(claim.inline_threshold_bytes, 1048576);
    select 0 as chunk, 0::bigint as bytes, ''::bytea as sha256 into stored;
    -- Before PostgreSQL 16 the cursor would be called pieces, and so would that of a batch that the query publishes.
    pieces := null;
    loop
        fetched_rows := 0;
        fetched_bytes := 0;
        for piece in pieces loop
            fetched_rows := fetched_rows + piece.rows;
            fetched_bytes := fetched_bytes + octet_length(piece.data);
            total_rows := total_rows + piece.rows;
            total_bytes := total_bytes + octet_length(piece.data);
            if is_claim then
                stored := postbox._append_claim(claim.claims, seq, piece.data, true, piece.rows, stored.chunk, stored.bytes, stored.sha256);
                continue;
            end if;
            pending := pending || piece.data;
            pending_rows := pending_rows || piece.rows;
            continue when total_rows <= threshold_rows and total_bytes <= threshold_bytes;
            if claim.claims is null then
                raise exception using errcode = 'object_not_in_prerequisite_state',
                    message = pg_catalog.format('a batch for outbox "%s" has more than %s rows or %s bytes', outbox, threshold_rows, threshold_bytes),
                    detail = 'The outbox has no claim check, which would keep the rows of such an event beside the outbox.',
                    hint = pg_catalog.format('Let it have one: SELECT postbox.enable_claim_check(%L). Or publish less at once.', outbox);
            end if;
            is_claim := true;
            seq := nextval(claim.sequence);
            for n in 1 .. cardinality(pending) loop
                stored := postbox._append_claim(claim.claims, seq, pending[n], true, pending_rows[n], stored.chunk, stored.bytes, stored.sha256);
            end loop;
            pending := null;
        end loop;
        exit when fetched_rows = 0;
        wanted := least(greatest(chunk_bytes::bigint * fetched_rows / fetched_bytes, 1), most_rows);
    end loop;
    if is_claim then
        return postbox._publish_claim(outbox, seq, 'rows', total_rows, stored.chunk, stored.bytes, stored.sha256, type, key, headers, event_id);
    end if;
    select '[' || replace(coalesce(rtrim(string_agg(convert_from(p.piece, 'UTF8'), '' order by p.n), E'\n'), ''), E'\n', ',') || ']' into payload
        from unnest(pending) with ordinality as p(piece, n);
    select a.atttypid into payload_type
        from postbox._marker m
        join pg_attribute a on a.attrelid = m.outbox and a.attname = postbox._marker_column(m.arguments, 'payload') and not a.attisdropped
        where m.outbox = _publish_rows.outbox;
    if payload_type = 'bytea'::regtype then
        return postbox.publish(outbox::text, type, convert_to(payload, 'UTF8'), key, headers, event_id);
    end if;
    return postbox.publish(outbox::text, type, payload, key, headers, event_id);
end
$function$;
comment on function postbox._publish_rows(regclass, text, refcursor, text, jsonb, uuid, text) is 'Private: publishes the rows of a cursor as one event, inline or as a claim';

create or replace function postbox._require_outbox(outbox regclass, outbox_name text, type text) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $function$
begin
    if outbox is null then
        raise exception using errcode = case when outbox_name is null then 'null_value_not_allowed' else 'undefined_table' end,
            message = format('outbox %s does not exist', coalesce('"' || outbox_name || '"', 'NULL')),
            hint = 'Make it with postbox.create_outbox, or qualify the name if its schema is not in search_path; postbox.outbox_status() lists the outboxes.';
    end if;
    if not exists (select from postbox._marker m where m.outbox = _require_outbox.outbox) then
        raise exception using errcode = 'wrong_object_type',
            message = format('"%s" is not an outbox', outbox_name),
            hint = 'postbox.outbox_status() lists the outboxes.';
    end if;
    if type is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = 'the type of an event cannot be NULL',
            hint = 'It says what happened, for instance prices.changed.';
    end if;
end
$function$;
comment on function postbox._require_outbox(regclass, text, text) is 'Private: refuses what cannot be published to';

create or replace function postbox._publish_query(
    outbox regclass, outbox_name text, type text, query text, key text, headers jsonb, event_id uuid, path text
) returns uuid
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    rows refcursor;
    -- The line break ends a comment that the query may end with. A json value may hold line breaks; outside of strings, where they are blanks.
    statement constant text := format(
        'select pg_catalog.replace(pg_catalog.row_to_json(r)::pg_catalog.text, E''\n'', '' '') from (%s' || E'\n) as r', rtrim(query, E'; \n\t'));
    pinned constant text := current_setting('search_path');
    id uuid;
begin
    perform postbox._require_outbox(outbox, outbox_name, type);
    if query is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = format('the query of a batch for outbox "%s" is NULL', outbox_name),
            hint = 'For instance ''SELECT id, price FROM prices''.';
    end if;
    perform set_config('search_path', path, true);
    open rows no scroll for execute statement;
    perform pg_catalog.set_config('search_path', pinned, true);
    id := postbox._publish_rows(outbox, type, rows, key, headers, event_id, path);
    close rows;
    return id;
end
$function$;
comment on function postbox._publish_query(regclass, text, text, text, text, jsonb, uuid, text) is 'Private: publish_batch with the outbox looked up';

create or replace function postbox._publish_array(
    outbox regclass, outbox_name text, type text, rows jsonb[], key text, headers jsonb, event_id uuid
) returns uuid
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    elements refcursor;
    id uuid;
begin
    perform postbox._require_outbox(outbox, outbox_name, type);
    if rows is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = format('the rows of a batch for outbox "%s" are NULL', outbox_name),
            hint = 'An empty array is a batch without rows.';
    end if;
    open elements no scroll for select coalesce(element::text, 'null') from unnest(rows) as element;
    id := postbox._publish_rows(outbox, type, elements, key, headers, event_id, current_setting('search_path'));
    close elements;
    return id;
end
$function$;
comment on function postbox._publish_array(regclass, text, text, jsonb[], text, jsonb, uuid) is 'Private: publish_batch with the outbox looked up';

create or replace function postbox.publish_batch(
    outbox text, type text, query text, key text default null, headers jsonb default null, event_id uuid default null
) returns uuid
    language sql volatile
    begin atomic
        select postbox._publish_query(to_regclass(outbox), outbox, type, query, key, headers, event_id, current_setting('search_path'));
    end;
comment on function postbox.publish_batch(text, text, text, text, jsonb, uuid) is
    'Publishes the rows of a query as one event: an array of them as its payload or, above the thresholds of enable_claim_check, a claim. Returns the event id; needs INSERT on the outbox and on its claims';

create or replace function postbox.publish_batch(
    outbox text, type text, rows jsonb[], key text default null, headers jsonb default null, event_id uuid default null
) returns uuid
    language sql volatile
    begin atomic
        select postbox._publish_array(to_regclass(outbox), outbox, type, rows, key, headers, event_id);
    end;
comment on function postbox.publish_batch(text, text, jsonb[], text, jsonb, uuid) is
    'Publishes an array of JSON documents as one event: as its payload or, above the thresholds of enable_claim_check, as a claim. Returns the event id; needs INSERT on the outbox and on its claims';

-- What PUBLIC may do, in one place: read, decode, and publish with the rights it has. Everything else is granted by the
-- database's administrator (README.md). A function that is not listed here is nobody's but the extension owner's.

grant usage on schema postbox to public;

revoke all on all functions in schema postbox from public;
grant execute on function
    postbox.publish(text, text, text, text, jsonb, uuid),
    postbox.publish(text, text, jsonb, text, jsonb, uuid),
    postbox.publish(text, text, json, text, jsonb, uuid),
    postbox.publish(text, text, bytea, text, jsonb, uuid),
    postbox.publish_batch(text, text, text, text, jsonb, uuid),
    postbox.publish_batch(text, text, jsonb[], text, jsonb, uuid),
    postbox.publish_large(text, text, text, text, jsonb, uuid),
    postbox.publish_large(text, text, bytea, text, jsonb, uuid),
    postbox.claim_chunks(text, bigint, int, int, xid8),
    postbox._require_outbox(regclass, text, text),
    postbox._publish_query(regclass, text, text, text, text, jsonb, uuid, text),
    postbox._publish_array(regclass, text, text, jsonb[], text, jsonb, uuid),
    postbox._publish_rows(regclass, text, refcursor, text, jsonb, uuid, text),
    postbox._publish_large(regclass, text, text, bytea, text, text, jsonb, uuid),
    postbox._publish_claim(regclass, bigint, text, bigint, int, bigint, bytea, text, text, jsonb, uuid),
    postbox._append_claim(regclass, bigint, bytea, boolean, int, int, bigint, bytea),
    postbox._fetch(refcursor, int, text),
    postbox._claim_chunks(regclass, text, bigint, int, int, xid8),
    postbox.emit(text, text, text, text, jsonb, uuid),
    postbox.emit(text, text, jsonb, text, jsonb, uuid),
    postbox.emit(text, text, bytea, text, jsonb, uuid),
    postbox.emit(text, text, json, text, jsonb, uuid),
    postbox.decode(bytea),
    postbox._decode_lines(bytea),
    postbox.outbox_status(text, text),
    postbox._marker_arguments(bytea),
    postbox._marker_column(text[], text),
    postbox._shown(text),
    postbox._is_replayable(oid, text[])
to public;

grant select on
    postbox.outboxes,
    postbox.captures,
    postbox.consumer_groups,
    postbox._marker,
    postbox._claim_check,
    postbox.consumer_group,
    postbox.consumer_group_outbox,
    postbox.checkpoint,
    postbox.backfill,
    postbox._server
to public;

-- A role of Postbox is a set of ordinary GRANTs: they are dumped with the database, need no role that belongs to the
-- extension, and can be had where one is not superuser. What a role may is listed here and nowhere else.

create or replace function postbox._role_rights(role text)
    returns table (right_name text, object text)
    language sql stable strict parallel safe
    begin atomic
        select r.right_name, r.object
        from (values
            ('publisher', 'usage',          'schema postbox'),
            ('publisher', 'execute',        'function postbox.publish(text, text, text, text, jsonb, uuid)'),
            ('publisher', 'execute',        'function postbox.publish(text, text, jsonb, text, jsonb, uuid)'),
            ('publisher', 'execute',        'function postbox.publish(text, text, json, text, jsonb, uuid)'),
            ('publisher', 'execute',        'function postbox.publish(text, text, bytea, text, jsonb, uuid)'),
            ('publisher', 'execute',        'function postbox.publish_batch(text, text, text, text, jsonb, uuid)'),
            ('publisher', 'execute',        'function postbox.publish_batch(text, text, jsonb[], text, jsonb, uuid)'),
            ('publisher', 'execute',        'function postbox.publish_large(text, text, text, text, jsonb, uuid)'),
            ('publisher', 'execute',        'function postbox.publish_large(text, text, bytea, text, jsonb, uuid)'),
            ('publisher', 'execute',        'function postbox._require_outbox(regclass, text, text)'),
            ('publisher', 'execute',        'function postbox._publish_query(regclass, text, text, text, text, jsonb, uuid, text)'),
            ('publisher', 'execute',        'function postbox._publish_array(regclass, text, text, jsonb[], text, jsonb, uuid)'),
            ('publisher', 'execute',        'function postbox._publish_rows(regclass, text, refcursor, text, jsonb, uuid, text)'),
            ('publisher', 'execute',        'function postbox._publish_large(regclass, text, text, bytea, text, text, jsonb, uuid)'),
            ('publisher', 'execute',        'function postbox._publish_claim(regclass, bigint, text, bigint, int, bigint, bytea, text, text, jsonb, uuid)'),
            ('publisher', 'execute',        'function postbox._append_claim(regclass, bigint, bytea, boolean, int, int, bigint, bytea)'),
            ('publisher', 'execute',        'function postbox._fetch(refcursor, int, text)'),
            ('publisher', 'select',         'table postbox._claim_check, postbox._marker'),
            ('publisher', 'execute',        'function postbox.emit(text, text, text, text, jsonb, uuid)'),
            ('publisher', 'execute',        'function postbox.emit(text, text, jsonb, text, jsonb, uuid)'),
            ('publisher', 'execute',        'function postbox.emit(text, text, bytea, text, jsonb, uuid)'),
            ('publisher', 'execute',        'function postbox.emit(text, text, json, text, jsonb, uuid)'),
            -- Events that leave later, or once.
            ('publisher', 'execute', 'function postbox.publish_later(text, text, text, timestamptz, text, jsonb, uuid)'),
            ('publisher', 'execute', 'function postbox.publish_later(text, text, jsonb, timestamptz, text, jsonb, uuid)'),
            ('publisher', 'execute', 'function postbox._publish_later(regclass, text, text, text, timestamptz, text, jsonb, uuid)'),
            ('publisher', 'execute', 'function postbox.publish_once(text, uuid, text, text, text, jsonb)'),
            ('publisher', 'execute', 'function postbox.publish_once(text, uuid, text, jsonb, text, jsonb)'),
            ('publisher', 'execute', 'function postbox._publish_once(regclass, text, uuid, text, text, text, jsonb)'),
            ('publisher', 'execute', 'function postbox._known_outbox(regclass, text)'),
            ('publisher', 'select', 'table postbox.outbox_later, postbox.outbox_once'),
            ('operator', 'execute', 'function postbox.enable_delayed_events(text)'),
            ('operator', 'execute', 'function postbox._enable_delayed_events(regclass, text)'),
            ('operator', 'execute', 'function postbox.enable_unique_events(text, interval)'),
            ('operator', 'execute', 'function postbox._enable_unique_events(regclass, text, interval)'),
            ('operator', 'execute', 'function postbox._make_beside(postbox._marker, text, text, text)'),
            ('operator', 'select, insert, update', 'table postbox.outbox_later, postbox.outbox_once'),
            ('maintainer', 'execute', 'function postbox._publish_due(regclass, int)'),
            ('maintainer', 'execute', 'function postbox._publish_all_due()'),
            ('maintainer', 'execute', 'function postbox._forget_published()'),
            ('maintainer', 'execute', 'function postbox._known_outbox(regclass, text)'),
            ('maintainer', 'select, delete', 'table postbox.outbox_later, postbox.outbox_once'),
            ('monitor', 'execute', 'function postbox.peek_outbox(text, int, text)'),
            ('monitor', 'execute', 'function postbox._peek_outbox(regclass, text, int, text)'),
            ('monitor', 'execute', 'function postbox.published_here(text)'),
            ('monitor', 'execute', 'function postbox._published_here(regclass, text)'),
            ('monitor', 'execute', 'function postbox._known_outbox(regclass, text)'),
            ('operator', 'execute', 'function postbox.purge_outbox(text, boolean)'),
            ('operator', 'execute', 'function postbox._purge_outbox(regclass, text, boolean)'),
            ('operator', 'execute', 'function postbox._leave_leaf(oid)'),
            ('operator', 'execute', 'function postbox._empty_leaf(oid, oid, text, oid, text, pg_snapshot[])'),
            ('operator', 'execute', 'function postbox._probe(text, bigint, bigint, pg_snapshot[])'),
            ('operator', 'execute', 'function postbox._note_removed(oid, pg_snapshot[], bigint, pg_lsn)'),
            ('operator', 'execute', 'function postbox._earliest(pg_snapshot[])'),
            ('operator', 'select', 'table postbox._ring, postbox._leaf, postbox._need'),
            ('operator', 'select, insert, update', 'table postbox.removed'),
            ('operator', 'select, delete', 'table postbox.leaf'),
            ('operator', 'insert', 'table postbox.ring_move'),
            ('consumer',  'usage',          'schema postbox'),
            ('consumer',  'select',         'table postbox.consumer_group, postbox.consumer_group_outbox, postbox.checkpoint, postbox.backfill, postbox._server, postbox._marker'),
            ('consumer',  'update',         'table postbox.consumer_group, postbox.checkpoint, postbox.backfill'),
            ('consumer',  'insert, delete', 'table postbox.checkpoint, postbox.backfill'),
            ('consumer',  'insert',         'table postbox.audit'),
            ('consumer',  'execute',        'function postbox._member_lock(text)'),
            ('consumer',  'execute',        'function postbox._try_membership(text)'),
            ('consumer',  'execute',        'function postbox._activate(text, text, interval, interval)'),
            ('consumer',  'execute',        'function postbox._require_epoch(text, bigint)'),
            ('consumer',  'execute',        'function postbox._beat(text)'),
            ('consumer',  'execute',        'function postbox._checkpoint(text, bigint, pg_snapshot, pg_lsn)'),
            ('consumer',  'execute',        'function postbox._backfilled(text, bigint, oid, bigint, boolean)'),
            ('consumer',  'execute',        'function postbox._release(text, bigint)'),
            ('consumer',  'execute',        'function postbox._durable()'),
            ('consumer',  'execute',        'function postbox._backfills(text)'),
            ('consumer',  'execute',        'function postbox._stored_events(text, oid, bigint, int)'),
            ('consumer',  'execute',        'function postbox._require_replayable(regclass, text)'),
            ('consumer',  'execute',        'function postbox._frame(regclass, record)'),
            ('consumer',  'execute',        'function postbox._frame_sql(regclass, text)'),
            ('consumer',  'execute',        'function postbox._marker_of(oid)'),
            ('consumer',  'execute',        'function postbox._base_types(oid[])'),
            ('consumer',  'execute',        'function postbox._outbox_shape(oid)'),
            ('consumer',  'execute',        'function postbox._require_published(regclass, text)'),
            ('consumer',  'select',         'table postbox._published'),
            ('consumer',  'select, insert, update, delete', 'table postbox.dead_letter'),
            ('consumer',  'execute',        'function postbox._readable(bytea)'),
            ('consumer',  'execute',        'function postbox._call_up(text, text)'),
            ('consumer',  'execute',        'function postbox._store_dead_letters(text, bigint, boolean, text[], text[], bytea[], bigint[], text[], text[], text[], pg_lsn[], bigint[], timestamptz[], bytea[], text[], int[], bytea[], timestamptz[], bigint[])'),
            ('consumer',  'execute',        'function postbox._dead_letter_keys(text, bigint)'),
            ('consumer',  'execute',        'function postbox._due_dead_letters(text, boolean, boolean, bigint[], int, bigint)'),
            ('consumer',  'execute',        'function postbox._delivered_dead_letter(text, bigint, bigint)'),
            ('consumer',  'execute',        'function postbox._fail_dead_letter(text, bigint, bigint, bytea, bigint)'),
            ('consumer',  'execute',        'function postbox._stream_source(text)'),
            ('consumer',  'select',         'table postbox._claim_check'),
            ('consumer',  'execute',        'function postbox.claim_chunks(text, bigint, int, int, xid8)'),
            ('consumer',  'execute',        'function postbox._claim_chunks(regclass, text, bigint, int, int, xid8)'),
            ('receiver',  'execute',        'function postbox._open_inbox_stream(text, bigint, int, oid, text, text, timestamptz, pg_lsn, bigint, text, text, text)'),
            ('receiver',  'execute',        'function postbox._stream_into_inbox(bigint, bigint, pg_lsn, bigint, text[], text[], text[], text[], text[], bytea[], text[])'),
            ('receiver',  'execute',        'function postbox._inbox(text)'),
            ('receiver',  'execute',        'function postbox._inbox_type(postbox.inbox, text)'),
            ('receiver',  'execute',        'function postbox._inbox_insert_sql(postbox.inbox, text, text)'),
            ('receiver',  'execute',        'function postbox._durable()'),
            ('receiver',  'select, insert, update, delete', 'table postbox.inbox_stream'),
            ('receiver',  'select',         'table postbox.inbox'),
            ('monitor',   'select',         'table postbox.dead_letters'),
            ('monitor',   'usage',          'schema postbox'),
            ('monitor',   'select',         'table postbox.checkpoint, postbox.backfill'),
            ('monitor',   'select',         'table postbox.outboxes, postbox.captures, postbox.consumer_groups, postbox._marker'),
            ('monitor',   'select',         'table postbox.consumer_group, postbox.consumer_group_outbox'),
            ('monitor',   'select',         'table postbox.consumer_status, postbox.active_leases, postbox.consumer_lag'),
            ('monitor',   'select',         'table postbox.retention_status, postbox.maintenance_status'),
            ('monitor',   'select',         'table postbox.claim_checks, postbox._claim_check'),
            ('monitor',   'execute',        'function postbox.outbox_rows_consumed(text)'),
            ('monitor',   'execute',        'function postbox._outbox_rows_consumed(regclass, text)'),
            -- What a view calls, it calls as the one who reads it.
            ('monitor',   'select',         'table postbox.outbox_setting, postbox.sample, postbox._server, postbox.audit'),
            ('monitor',   'execute',        'function postbox._member_lock(text)'),
            ('monitor',   'execute',        'function postbox._retention(oid)'),
            ('monitor',   'execute',        'function postbox._moment_before(interval)'),
            ('monitor',   'execute',        'function postbox._leaves(oid, int, bigint)'),
            ('monitor',   'execute',        'function postbox._has_moved(pg_snapshot, pg_lsn, boolean)'),
            ('monitor',   'execute',        'function postbox.outbox_status(text, text)'),
            ('monitor',   'execute',        'function postbox.describe_consumer_group(text)'),
            ('monitor',   'execute',        'function postbox._marker_arguments(bytea)'),
            ('monitor',   'execute',        'function postbox._marker_column(text[], text)'),
            ('monitor',   'execute',        'function postbox._is_replayable(oid, text[])'),
            ('maintainer', 'execute',       'function postbox.maintain(boolean)'),
            ('maintainer', 'execute',       'function postbox._take_sample()'),
            ('maintainer', 'execute',       'function postbox._watch(text, text, boolean, interval, jsonb, text)'),
            ('maintainer', 'execute',       'function postbox._watch_groups()'),
            ('maintainer', 'execute',       'function postbox._watch_storage()'),
            ('maintainer', 'execute',       'function postbox._alert(text, text, jsonb)'),
            ('maintainer', 'execute',       'function postbox._enforce_wal_budgets()'),
            ('maintainer', 'execute',       'function postbox._unrepeatable(regclass[])'),
            ('maintainer', 'execute',       'function postbox._reap_slots()'),
            ('maintainer', 'execute',       'function postbox._drop_slot_of(name, int)'),
            ('maintainer', 'execute',       'function postbox._advance(oid)'),
            ('maintainer', 'execute',       'function postbox._retain(oid)'),
            ('maintainer', 'execute',       'function postbox._required(oid)'),
            ('maintainer', 'execute',       'function postbox._probe(text, bigint, bigint, pg_snapshot[])'),
            ('maintainer', 'execute',       'function postbox._empty_leaf(oid, oid, text, oid, text, pg_snapshot[])'),
            ('maintainer', 'execute',       'function postbox._earliest(pg_snapshot[])'),
            ('maintainer', 'execute',       'function postbox._includes(pg_snapshot, pg_snapshot)'),
            ('maintainer', 'execute',       'function postbox._note_leaf(oid, oid, xid8, text)'),
            ('maintainer', 'execute',       'function postbox._note_removed(oid, pg_snapshot[], bigint, pg_lsn)'),
            ('maintainer', 'execute',       'function postbox._lock_key(regclass)'),
            ('maintainer', 'select',        'table postbox._ring, postbox._leaf, postbox._need, postbox._active_member, postbox._slot_risk, postbox.checkpoint'),
            ('maintainer', 'select, insert, update, delete', 'table postbox.sample, postbox.removed, postbox.leaf, postbox.ring_move, postbox.alert'),
            ('maintainer', 'select, delete', 'table postbox.outbox_setting'),
            ('maintainer', 'select, update', 'table postbox.maintenance'),
            ('maintainer', 'insert',        'table postbox.audit'),
            ('operator',  'execute',        'function postbox.set_retention(text, interval, bigint)'),
            ('operator',  'execute',        'function postbox._set_retention(regclass, text, interval, bigint)'),
            ('operator',  'insert, update', 'table postbox.outbox_setting'),
            ('operator',  'select',         'table postbox.removed'),
            ('operator',  'execute',        'function postbox._alert(text, text, jsonb)'),
            ('operator',  'select, update, delete', 'table postbox.dead_letter'),
            ('operator',  'execute',        'function postbox.redrive_dead_letters(text, bigint[], text, text, text, interval, boolean, boolean)'),
            ('operator',  'execute',        'function postbox.discard_dead_letters(text, bigint[], text, text, text, interval, boolean, boolean)'),
            ('operator',  'execute',        'function postbox._select_dead_letters(text, bigint[], text, text, text, interval, boolean)'),
            ('operator',  'execute',        'function postbox._audit_dead_letters(text, text, bigint[], bigint[], text, text, text, interval)'),
            ('operator',  'execute',        'function postbox._call_up(text, text)'),
            ('operator',  'execute',        'function postbox.set_emit(text, boolean)'),
            ('operator',  'execute',        'function postbox._set_emit(regclass, text, boolean)'),
            ('operator',  'execute',        'function postbox.create_outbox(text, text, text, bigint)'),
            ('operator',  'execute',        'function postbox.enable_claim_check(text, int, int)'),
            ('operator',  'execute',        'function postbox._enable_claim_check(regclass, text, int, int)'),
            ('operator',  'execute',        'function postbox._mark_claims(regclass, regclass, int, int)'),
            ('operator',  'execute',        'function postbox.adopt_outbox(text, text, text, text, text, text, text, text, text[], text, text)'),
            ('operator',  'execute',        'function postbox._layout(text)'),
            ('operator',  'execute',        'function postbox._lock_key(regclass)'),
            ('operator',  'execute',        'function postbox.drop_outbox(text, text, boolean)'),
            ('operator',  'execute',        'function postbox.enable_outbox(text, text, text[], text[], text, boolean)'),
            ('operator',  'execute',        'function postbox._enable_outbox(regclass, text, text, regclass, text[], text[], text, boolean)'),
            ('operator',  'execute',        'function postbox._check_captured(regclass, text)'),
            ('operator',  'execute',        'function postbox._captured_columns(regclass, text, text, text[])'),
            ('operator',  'execute',        'function postbox._hold_columns(regclass, text, text[])'),
            ('operator',  'execute',        'function postbox._outbox_for(regclass, text, regclass)'),
            ('operator',  'execute',        'function postbox._captured_rows(text, text, text)'),
            ('operator',  'execute',        'function postbox._captured_whole(text, text)'),
            ('operator',  'execute',        'function postbox._captured_key(int, text, text)'),
            ('operator',  'execute',        'function postbox._captured_events(jsonb, text, text, text, text, text, text, text)'),
            ('operator',  'execute',        'function postbox._captured_lines(jsonb, text)'),
            ('operator',  'execute',        'function postbox._captured_op(jsonb, text)'),
            ('operator',  'execute',        'function postbox._captured_function(jsonb)'),
            ('operator',  'execute',        'function postbox._beginning_function(jsonb)'),
            ('operator',  'execute',        'function postbox._columns_function(jsonb)'),
            ('operator',  'execute',        'function postbox.disable_outbox(text, boolean, boolean)'),
            ('operator',  'execute',        'function postbox._disable_outbox(regclass, text, boolean, boolean)'),
            ('operator',  'execute',        'function postbox._require_taking(regclass, text)'),
            ('operator',  'execute',        'function postbox.refresh_materialized_view(text, text, text[], boolean)'),
            ('operator',  'execute',        'function postbox._refresh_materialized_view(regclass, text, text, regclass, text[], boolean)'),
            ('operator',  'execute',        'function postbox.create_consumer_group(text, text[], text, boolean, bigint, text, interval, text)'),
            ('operator',  'execute',        'function postbox._create_consumer_group(text, text[], regclass[], text, boolean, bigint, text, interval, text)'),
            ('operator',  'execute',        'function postbox._note_markers(text)'),
            ('operator',  'execute',        'function postbox.enable_pgoutput()'),
            ('operator',  'execute',        'function postbox._join_publication(regclass)'),
            ('operator',  'execute',        'function postbox._require_published(regclass, text)'),
            ('operator',  'select',         'table postbox._published'),
            ('operator',  'execute',        'function postbox.set_source(text, text)'),
            ('operator',  'execute',        'function postbox._check_source(text, text)'),
            ('operator',  'execute',        'function postbox._default_source()'),
            ('operator',  'execute',        'function postbox._was_there(xid, pg_snapshot)'),
            ('operator',  'execute',        'function postbox._frame_sql(regclass, text)'),
            ('operator',  'execute',        'function postbox._slot_name(text, int)'),
            ('operator',  'execute',        'function postbox._make_slot(name, text, boolean, timestamptz)'),
            ('operator',  'execute',        'function postbox._drop_slot(name)'),
            ('operator',  'execute',        'function postbox._wait_for_writers(timestamptz)'),
            ('operator',  'execute',        'function postbox._require_before_writes(text)'),
            ('operator',  'execute',        'function postbox._require_replayable(regclass, text)'),
            ('operator',  'execute',        'function postbox._check_wal_budget(text, bigint, text, regclass[])'),
            ('operator',  'execute',        'function postbox._unrepeatable(regclass[])'),
            ('operator',  'execute',        'function postbox._start_backfill(text, pg_snapshot[], text, boolean)'),
            ('operator',  'execute',        'function postbox.recover_consumer_group(text, interval)'),
            ('operator',  'execute',        'function postbox.seek_consumer_group(text, text, boolean, interval)'),
            ('operator',  'execute',        'function postbox._lock_group(text, text)'),
            ('operator',  'execute',        'function postbox._is_timestamp(text)'),
            ('operator',  'execute',        'function postbox._find_event(text, text)'),
            ('operator',  'execute',        'function postbox._count_stored(text, pg_snapshot[])'),
            ('operator',  'execute',        'function postbox.drop_consumer_group(text, boolean)'),
            ('operator',  'execute',        'function postbox.set_wal_budget(text, bigint, text)'),
            ('operator',  'execute',        'function postbox.pause_consumer_group(text)'),
            ('operator',  'execute',        'function postbox.resume_consumer_group(text)'),
            ('operator',  'execute',        'function postbox._set_paused(text, boolean)'),
            ('operator',  'execute',        'function postbox._durable()'),
            ('operator',  'execute',        'function postbox._member_lock(text)'),
            ('operator',  'execute',        'function postbox._includes(pg_snapshot, pg_snapshot)'),
            ('operator',  'execute',        'function postbox._is_done(xid8, pg_snapshot[])'),
            ('operator',  'select',         'table postbox._server, postbox.checkpoint, postbox.backfill, postbox.sample, postbox.audit'),
            ('operator',  'insert, update, delete', 'table postbox.consumer_group, postbox.consumer_group_outbox, postbox.checkpoint, postbox.backfill'),
            ('operator',  'insert',         'table postbox.audit'),
            ('operator',  'execute',        'function postbox._frame(regclass, record)'),
            -- What an inbox shows, hands out again and keeps.
            ('monitor',   'select',         'table postbox.inbox_keeping, postbox.inbox_total, postbox.inbox_sample, postbox.inbox_horizon, postbox.inbox_replay, postbox.inbox_seen_leaf'),
            ('monitor',   'select',         'table postbox._pending_batch, postbox._pending_lane, postbox._log_writer, postbox._open_transaction'),
            ('monitor',   'execute',        'function postbox.inbox_status(text)'),
            ('monitor',   'execute',        'function postbox.inbox_health(text)'),
            ('monitor',   'execute',        'function postbox._inbox_counts(int)'),
            ('monitor',   'execute',        'function postbox._count_inbox(postbox.inbox, int)'),
            ('monitor',   'execute',        'function postbox._lane_types_sql(postbox.inbox)'),
            ('monitor',   'execute',        'function postbox._lane_size(int8multirange, text)'),
            ('monitor',   'execute',        'function postbox._lane_messages_sql(postbox.inbox, text)'),
            ('monitor',   'execute',        'function postbox._inbox_view(postbox.inbox, text)'),
            ('monitor',   'execute',        'function postbox._inbox_column(jsonb, text, text, text)'),
            ('monitor',   'execute',        'function postbox._inbox_type(postbox.inbox, text)'),
            ('monitor',   'execute',        'function postbox._inbox_recent(int)'),
            ('monitor',   'execute',        'function postbox._oldest_claimable(postbox.inbox)'),
            ('monitor',   'execute',        'function postbox._removal_waits_for(postbox.inbox)'),
            ('monitor',   'execute',        'function postbox._sort_lock(int)'),
            ('operator',  'execute',        'function postbox.replay_inbox_messages(text, text[])'),
            ('operator',  'execute',        'function postbox.replay_inbox_dead_letters(text, text[], text, text, interval, boolean, boolean, float8)'),
            ('operator',  'execute',        'function postbox.discard_inbox_dead_letters(text, text[], text, text, interval, boolean, boolean)'),
            ('operator',  'execute',        'function postbox._inbox_to_keep(text)'),
            ('operator',  'execute',        'function postbox._check_rate(float8)'),
            ('operator',  'execute',        'function postbox._select_inbox_dead(postbox.inbox, text[], text, text, interval, boolean)'),
            ('operator',  'execute',        'function postbox._replay_dead(postbox.inbox, text[], float8)'),
            ('operator',  'execute',        'function postbox._reset_rows(postbox.inbox, text[])'),
            ('operator',  'execute',        'function postbox._note_void(postbox.inbox, text[])'),
            ('operator',  'execute',        'function postbox._make_inbox_views(text)'),
            ('operator',  'execute',        'function postbox._replace_inbox_view(postbox.inbox, text, text, text)'),
            ('operator',  'insert, update', 'table postbox.inbox_replay'),
            ('maintainer', 'execute',       'function postbox._keep_inboxes()'),
            ('maintainer', 'execute',       'function postbox._keep_inbox(text, bigint)'),
            ('maintainer', 'execute',       'function postbox._watch_inbox_health()'),
            ('maintainer', 'execute',       'function postbox._settled_log_id()'),
            ('maintainer', 'execute',       'function postbox._settle_seen()'),
            ('maintainer', 'execute',       'function postbox._fold_inbox_log(postbox.inbox, bigint, int)'),
            ('maintainer', 'execute',       'function postbox._sample_inbox(postbox.inbox)'),
            ('maintainer', 'execute',       'function postbox._expired_entries(postbox.inbox, bigint, bigint, int)'),
            ('maintainer', 'execute',       'function postbox._note_seen(postbox.inbox, int)'),
            ('maintainer', 'execute',       'function postbox._remove_processed(postbox.inbox, int)'),
            ('maintainer', 'execute',       'function postbox._expire_dead(postbox.inbox, int)'),
            ('maintainer', 'execute',       'function postbox._turn_inbox_log()'),
            ('maintainer', 'execute',       'function postbox._needs_log_leaf(text)'),
            ('maintainer', 'execute',       'function postbox._empty_inbox_log()'),
            ('maintainer', 'execute',       'function postbox._turn_seen()'),
            ('maintainer', 'execute',       'function postbox._expire_leases(postbox.inbox, int, boolean)'),
            ('maintainer', 'select, insert, update, delete', 'table postbox.inbox_floor'),
            ('maintainer', 'select, usage', 'sequence postbox.inbox_token'),
            ('maintainer', 'execute',       'function postbox._durable()'),
            ('maintainer', 'execute',       'function postbox._bury(postbox.inbox, text, text, smallint, text, text, int, timestamptz, timestamptz, text, bigint)'),
            ('maintainer', 'execute',       'function postbox._bury_head(postbox.inbox, text, text, text, smallint, text, text, int, timestamptz)'),
            ('maintainer', 'insert, update, delete', 'table postbox.inbox_keeping, postbox.inbox_total, postbox.inbox_sample, postbox.inbox_horizon, postbox.inbox_replay, postbox.inbox_seen_leaf'),
            ('maintainer', 'insert, update, delete', 'table postbox.inbox_batch, postbox.inbox_lane, postbox.inbox_dead'),
            ('maintainer', 'insert, update', 'table postbox.inbox_seen'),
            ('maintainer', 'insert',        'table postbox.inbox_log'),
            ('maintainer', 'select, truncate', 'table postbox.inbox_log_g0, postbox.inbox_log_g1, postbox.inbox_log_g2, postbox.inbox_log_g3'),
            ('maintainer', 'truncate',      'table postbox.inbox_seen_g0, postbox.inbox_seen_g1, postbox.inbox_seen_g2'),
            ('maintainer', 'select, update', 'sequence postbox.inbox_log_id_seq'),
            ('operator',  'execute',        'function postbox._keeping_lock(int)'),
            ('operator',  'execute',        'function postbox._discard_dead(postbox.inbox, text[])'),
            ('operator',  'execute',        'function postbox._note_replay(postbox.inbox, text, text[], jsonb)'),
            ('operator',  'execute',        'function postbox._advance_lanes(postbox.inbox, text[])'),
            ('operator',  'execute',        'function postbox._queue_heads(int, text[], text[], text[], smallint[], timestamptz[])'),
            ('operator',  'execute',        'function postbox._next_number(int8multirange, bigint)'),
            ('maintainer', 'execute',       'function postbox._keeping_lock(int)'),
            ('maintainer', 'execute',       'function postbox._discard_dead(postbox.inbox, text[])'),
            ('maintainer', 'execute',       'function postbox._note_replay(postbox.inbox, text, text[], jsonb)'),
            ('maintainer', 'execute',       'function postbox._advance_lanes(postbox.inbox, text[])'),
            ('maintainer', 'execute',       'function postbox._queue_heads(int, text[], text[], text[], smallint[], timestamptz[])'),
            ('maintainer', 'execute',       'function postbox._next_number(int8multirange, bigint)'),
            -- What the triggers of an inbox do, they do as the one who inserts.
            ('receiver',  'usage',          'schema postbox'),
            ('receiver',  'select',         'table postbox.inbox, postbox.inbox_tier, postbox.inbox_seen'),
            ('receiver',  'insert (inbox, tier, ready_at, event_type, event_ids)', 'table postbox.inbox_batch'),
            ('receiver',  'insert (inbox, at, what, event_type, messages, event_ids)', 'table postbox.inbox_log'),
            ('receiver',  'execute',        'function postbox.inbox_receive(text, text, jsonb, text, text, text, bigint, int, jsonb, timestamptz, text)'),
            ('receiver',  'execute',        'function postbox._as_jsonb(json)'),
            ('worker',    'usage',          'schema postbox'),
            ('worker',    'select, usage',  'sequence postbox.inbox_token'),
            ('worker',    'usage, select',  'sequence postbox.inbox_token'),
            ('worker',    'select',         'table postbox.inbox, postbox.inbox_tier'),
            ('worker',    'select, insert, update, delete', 'table postbox.inbox_batch, postbox.inbox_lane, postbox.inbox_dead'),
            ('worker',    'select, insert', 'table postbox.inbox_log, postbox.inbox_floor'),
            ('worker',    'execute',        'function postbox.inbox_claim(text, text, int, int, text)'),
            ('worker',    'execute',        'function postbox.inbox_complete(text, text[], bigint[])'),
            ('worker',    'execute',        'function postbox.inbox_fail(text, text, bigint, text, interval)'),
            ('worker',    'execute',        'function postbox.inbox_extend(text, text[], bigint[], int)'),
            ('worker',    'execute',        'function postbox.inbox_release(text, text[], bigint[])'),
            ('worker',    'execute',        'function postbox._inbox(text)'),
            ('worker',    'execute',        'function postbox._as_jsonb(json)'),
            ('worker',    'execute',        'function postbox._inbox_backoff(interval, interval, int)'),
            ('worker',    'execute',        'function postbox._claim_tiers(int, smallint[], bigint, text, timestamptz, int, boolean)'),
            ('worker',    'execute',        'function postbox._claim_batches(int, smallint, bigint, text, timestamptz, int, boolean)'),
            ('worker',    'execute',        'function postbox._claim_suspect(int, smallint[], bigint, text, timestamptz)'),
            ('worker',    'execute',        'function postbox._raise_floors(int, smallint[])'),
            ('worker',    'execute',        'function postbox._lower_floor(int, text, smallint, timestamptz)'),
            ('worker',    'execute',        'function postbox._may_look(int)'),
            ('worker',    'execute',        'function postbox._note_look(int, interval)'),
            ('worker',    'select, insert, update, delete', 'table postbox.inbox_floor'),
            ('worker',    'select, insert', 'table postbox.inbox_floor'),
            ('worker',    'execute',        'function postbox._inbox_lock(text)'),
            ('worker',    'execute',        'function postbox._use_inbox(text)'),
            ('worker',    'execute',        'function postbox._sort_arrivals(postbox.inbox, int, smallint)'),
            ('worker',    'execute',        'function postbox._tell_lanes(postbox.inbox, text[], text[], bigint[], text[], smallint[], timestamptz[])'),
            ('worker',    'execute',        'function postbox._make_lanes(postbox.inbox, text[])'),
            ('worker',    'execute',        'function postbox._note_arrivals(postbox.inbox, text[], smallint[], timestamptz)'),
            ('worker',    'execute',        'function postbox._next_number(int8multirange, bigint)'),
            ('worker',    'execute',        'function postbox._inbox_type(postbox.inbox, text)'),
            ('worker',    'execute',        'function postbox.inbox_is_my_partition(text, int, int)'),
            ('worker',    'execute',        'function postbox._sort_lock(int)'),
            ('worker',    'execute',        'function postbox._arrivals(postbox.inbox, text[])'),
            ('worker',    'execute',        'function postbox._advance_lanes(postbox.inbox, text[])'),
            ('worker',    'execute',        'function postbox._queue_heads(int, text[], text[], text[], smallint[], timestamptz[])'),
            ('worker',    'execute',        'function postbox._bury_head(postbox.inbox, text, text, text, smallint, text, text, int, timestamptz)'),
            ('worker',    'execute',        'function postbox._check_tokens(postbox.inbox, text[], bigint[])'),
            ('worker',    'execute',        'function postbox._stale_token(postbox.inbox, text, bigint)'),
            ('worker',    'execute',        'function postbox._require_held(postbox.inbox, text[], bigint[], text[])'),
            ('worker',    'execute',        'function postbox._take_from_batches(postbox.inbox, text[], bigint[])'),
            ('worker',    'execute',        'function postbox._expire_leases(postbox.inbox, int, boolean)'),
            ('worker',    'execute',        'function postbox._bury(postbox.inbox, text, text, smallint, text, text, int, timestamptz, timestamptz, text, bigint)'),
            ('monitor',   'select',         'table postbox.inbox, postbox.inbox_tier, postbox.inbox_batch, postbox.inbox_lane, postbox.inbox_dead, postbox.inbox_log, postbox.inbox_seen, postbox.inbox_floor'),
            ('monitor',   'execute',        'function postbox._inbox(text)'),
            ('monitor',   'execute',        'function postbox._ordered_inbox(postbox.inbox)'),
            ('monitor',   'execute',        'function postbox._gaps_sql(postbox.inbox)'),
            ('monitor',   'execute',        'function postbox._noted_sql(postbox.inbox)'),
            ('monitor',   'execute',        'function postbox.inbox_ordering_gaps(text)'),
            ('maintainer', 'execute',       'function postbox._watch_inbox_gaps()'),
            ('operator',  'insert, update, delete', 'table postbox.inbox, postbox.inbox_tier'),
            ('operator',  'insert, update, delete', 'table postbox.inbox_batch, postbox.inbox_lane, postbox.inbox_dead, postbox.inbox_seen, postbox.inbox_floor'),
            ('operator',  'insert',         'table postbox.inbox_log'),
            ('operator',  'execute',        'function postbox.create_inbox(text, text, int, interval, interval, text, interval, text, interval, interval)'),
            ('operator',  'execute',        'function postbox._check_inbox_name(text, text)'),
            ('operator',  'execute',        'function postbox._check_inbox_settings(text, int, interval, interval, interval, text, text, interval, interval)'),
            ('operator',  'execute',        'function postbox._arm_inbox(text)'),
            ('operator',  'execute',        'function postbox._arm_refusals(postbox.inbox, text)'),
            ('operator',  'execute',        'function postbox._arm_arriving(postbox.inbox, text)'),
            ('operator',  'execute',        'function postbox._arm_arrived(postbox.inbox, text)'),
            ('operator',  'execute',        'function postbox._arm_claimed(postbox.inbox, text)'),
            ('operator',  'execute',        'function postbox._arm_heads(postbox.inbox, text)'),
            ('operator',  'execute',        'function postbox._bury_head(postbox.inbox, text, text, text, smallint, text, text, int, timestamptz)'),
            ('operator',  'execute',        'function postbox._inbox_differs(postbox.inbox, text, text)'),
            ('operator',  'select, insert, update, delete', 'table postbox.inbox_floor'),
            ('operator',  'select, usage',  'sequence postbox.inbox_token'),
            ('operator',  'select, insert, delete', 'table postbox.inbox_floor'),
            ('operator',  'select',         'sequence postbox.inbox_token'),
            ('maintainer', 'select',        'sequence postbox.inbox_token'),
            ('maintainer', 'insert, delete', 'table postbox.inbox_floor'),
            ('maintainer', 'execute',       'function postbox._sweep_inbox(postbox.inbox, int)'),
            ('maintainer', 'execute',       'function postbox._lower_floor(int, text, smallint, timestamptz)'),
            ('maintainer', 'select, insert, delete', 'table postbox.inbox_floor'),
            ('operator',  'execute',        'function postbox._inbox_column(jsonb, text, text, text)'),
            ('operator',  'execute',        'function postbox._inbox_type(postbox.inbox, text)'),
            ('operator',  'execute',        'function postbox._inbox_json(postbox.inbox, text)'),
            ('operator',  'execute',        'function postbox._inbox_tier_of(postbox.inbox, text)'),
            ('operator',  'execute',        'function postbox._arm_inbox_style(postbox.inbox)'),
            ('operator',  'execute',        'function postbox._arm_inbox_updates(postbox.inbox)'),
            ('operator',  'execute',        'function postbox._inbox_condition(postbox.inbox, text[], text)'),
            ('operator',  'execute',        'function postbox._inbox_roles(jsonb)'),
            ('operator',  'execute',        'function postbox._receive_sql(postbox.inbox)'),
            ('operator',  'execute',        'function postbox._from_jsonb(text, text)'),
            ('operator',  'execute',        'function postbox._as_jsonb(json)'),
            ('operator',  'execute',        'function postbox._refuse_change()'),
            ('operator',  'execute',        'function postbox.enable_inbox_tracking(regclass, text, text, text, text, text, text, text, text, text, text, text, text, text, text, text, text, int, interval, interval, text, interval, text, interval, interval)'),
            ('operator',  'execute',        'function postbox._check_inbox_table(regclass)'),
            ('operator',  'execute',        'function postbox._adopted_column(regclass, text, text, text[], boolean)'),
            ('operator',  'execute',        'function postbox._take_over_pending(postbox.inbox, text)'),
            ('operator',  'execute',        'function postbox.drop_inbox(text, boolean, boolean)'),
            ('operator',  'execute',        'function postbox._inbox_views(postbox.inbox)'),
            ('operator',  'execute',        'function postbox._inbox_functions(postbox.inbox)'),
            ('operator',  'execute',        'function postbox.enable_inbox_ordering(text, text, text, bigint, interval)'),
            ('operator',  'execute',        'function postbox.disable_inbox_ordering(text)'),
            ('operator',  'execute',        'function postbox.inbox_gap_skip(text, text, int8range, text)'),
            ('operator',  'execute',        'function postbox.enable_inbox_priority(text, text, jsonb)'),
            ('operator',  'execute',        'function postbox.disable_inbox_priority(text)'),
            ('operator',  'execute',        'function postbox.pause_inbox(text, text)'),
            ('operator',  'execute',        'function postbox.resume_inbox(text, text)'),
            ('operator',  'execute',        'function postbox._set_inbox_paused(text, text, boolean)'),
            ('operator',  'execute',        'function postbox._lock_inbox(text)'),
            ('operator',  'execute',        'function postbox._inbox_lock(text)'),
            ('operator',  'execute',        'function postbox._use_inbox(text)'),
            ('operator',  'execute',        'function postbox._inbox_role_column(postbox.inbox, text, text, text[])'),
            ('operator',  'execute',        'function postbox._inbox_view(postbox.inbox, text)'),
            ('operator',  'execute',        'function postbox._make_inbox_view(postbox.inbox, text, text, text)'),
            ('operator',  'execute',        'function postbox._inbox_is_ordered(postbox.inbox, text)'),
            ('operator',  'execute',        'function postbox._next_sql(postbox.inbox)'),
            ('operator',  'execute',        'function postbox._parse_tiers(jsonb)'),
            ('operator',  'execute',        'function postbox._retier_inbox(postbox.inbox)'),
            ('operator',  'execute',        'function postbox._tier_sql(postbox.inbox, smallint)'),
            ('operator',  'execute',        'function postbox._make_tier_views(postbox.inbox, postbox.inbox_tier[])'),
            ('operator',  'execute',        'function postbox._inbox_tiers(postbox.inbox)'),
            ('operator',  'execute',        'function postbox._sort_arrivals(postbox.inbox, int, smallint)'),
            ('operator',  'execute',        'function postbox._sort_lock(int)'),
            ('operator',  'execute',        'function postbox._tell_lanes(postbox.inbox, text[], text[], bigint[], text[], smallint[], timestamptz[])'),
            ('operator',  'execute',        'function postbox._make_lanes(postbox.inbox, text[])'),
            ('operator',  'execute',        'function postbox._note_arrivals(postbox.inbox, text[], smallint[], timestamptz)'),
            ('operator',  'execute',        'function postbox._arrivals(postbox.inbox, text[])'),
            ('operator',  'execute',        'function postbox._bury(postbox.inbox, text, text, smallint, text, text, int, timestamptz, timestamptz, text, bigint)'),
            ('operator',  'execute',        'function postbox._expire_leases(postbox.inbox, int, boolean)'),
            ('operator',  'execute',        'function postbox.repair_inbox(text)')
        ) as r(role, right_name, object)
        -- An operator and a maintainer see what a monitor sees.
        where r.role = _role_rights.role or (r.role = 'monitor' and _role_rights.role in ('operator', 'maintainer'));
    end;
comment on function postbox._role_rights(text) is 'Private: what a role of Postbox may';

-- What an INSERT needs; a column that is `serial` needs its sequence too, an identity column does not.
create or replace function postbox._publisher_rights(outbox regclass)
    returns table (right_name text, object text)
    language sql stable strict parallel safe
    begin atomic
        select 'usage', format('schema %I', m.schema) from postbox._marker m where m.outbox = _publisher_rights.outbox
        union all
        select 'insert', format('table %I.%I', m.schema, m.name) from postbox._marker m where m.outbox = _publisher_rights.outbox
        union all
        select 'insert', format('table %s', l.waiting) from postbox.outbox_later l where l.outbox = _publisher_rights.outbox
        union all
        select 'insert', format('table %s', o.published) from postbox.outbox_once o where o.outbox = _publisher_rights.outbox
        union all
        select 'usage', format('sequence %I.%I', n.nspname, s.relname)
        from pg_depend d
        join pg_class s on s.oid = d.objid and s.relkind = 'S'
        join pg_namespace n on n.oid = s.relnamespace
        where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass
          and d.refobjid = _publisher_rights.outbox and d.deptype = 'a'
        union all
        -- A claim is written before its event, under its seq.
        select r.right_name, r.object
        from postbox._claim_check k
        cross join lateral (values ('insert', format('table %I.%I', k.schema, k.name)), ('usage', format('sequence %s', k.sequence::regclass))) as r(right_name, object)
        where k.outbox = _publisher_rights.outbox;
    end;
comment on function postbox._publisher_rights(regclass) is 'Private: what publishing to an outbox needs';

-- What maintain() does to an outbox: it reads and truncates leaves, moves the sequence, and publishes what was delayed. Of an inbox it removes messages.
create or replace function postbox._maintainer_rights(outbox regclass)
    returns table (right_name text, object text)
    language sql stable strict parallel safe
    begin atomic
        select 'usage', format('schema %I', m.schema) from postbox._marker m where m.outbox = _maintainer_rights.outbox
        union all
        select 'select, truncate', format('table %I.%I', m.schema, m.name) from postbox._marker m where m.outbox = _maintainer_rights.outbox
        union all
        select 'select, truncate', format('table %s', l.leaf_name) from postbox._leaf l where l.outbox = _maintainer_rights.outbox
        union all
        select 'select, truncate', format('table %s', l.claims_leaf_name) from postbox._leaf l where l.outbox = _maintainer_rights.outbox and l.claims_leaf is not null
        union all
        select 'select, delete', format('table %s', l.waiting) from postbox.outbox_later l where l.outbox = _maintainer_rights.outbox
        union all
        select 'insert', format('table %I.%I', m.schema, m.name)
        from postbox._marker m join postbox.outbox_later l on l.outbox = m.outbox where m.outbox = _maintainer_rights.outbox
        union all
        select 'select, delete', format('table %s', o.published) from postbox.outbox_once o where o.outbox = _maintainer_rights.outbox
        union all
        select 'select, update', format('sequence %s', r.sequence::regclass) from postbox._ring r where r.outbox = _maintainer_rights.outbox and r.sequence is not null
        union all
        select r.right_name, r.object
        from postbox.inbox i
        join pg_class c on c.oid = i.relation
        join pg_namespace n on n.oid = c.relnamespace
        cross join lateral (values
            ('usage', format('schema %I', n.nspname)),
            ('select, delete', format('table %I.%I', n.nspname, c.relname)),
            ('select', format('table %I.%I', n.nspname, 'pending_' || i.name))
        ) as r(right_name, object)
        where i.relation = _maintainer_rights.outbox;
    end;
comment on function postbox._maintainer_rights(regclass) is 'Private: what maintaining an outbox or inbox needs';

-- What an INSERT into an inbox needs: its trigger looks whether the message is there.
create or replace function postbox._receiver_rights(inbox regclass)
    returns table (right_name text, object text)
    language sql stable strict parallel safe
    begin atomic
        select r.right_name, r.object
        from postbox.inbox i
        join pg_class c on c.oid = i.relation
        join pg_namespace n on n.oid = c.relnamespace
        cross join lateral (values
            ('usage', format('schema %I', n.nspname)),
            ('insert', format('table %I.%I', n.nspname, c.relname)),
            ('select (' || (select string_agg(format('%I', u.col), ', ') from unnest(array[i.columns ->> 'event_id', i.columns ->> 'payload']) as u(col)
                            where u.col is not null) || ')', format('table %I.%I', n.nspname, c.relname))
        ) as r(right_name, object)
        where i.relation = _receiver_rights.inbox
        union all
        select 'usage', format('sequence %I.%I', n.nspname, s.relname)
        from pg_depend d
        join pg_class s on s.oid = d.objid and s.relkind = 'S'
        join pg_namespace n on n.oid = s.relnamespace
        where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass
          and d.refobjid = _receiver_rights.inbox and d.deptype = 'a';
    end;
comment on function postbox._receiver_rights(regclass) is 'Private: what receiving into an inbox needs';

-- A worker reads messages; where workers write into the table itself, they may write how it went and no more.
create or replace function postbox._worker_rights(inbox regclass)
    returns table (right_name text, object text)
    language sql stable strict parallel safe
    begin atomic
        select r.right_name, r.object
        from postbox.inbox i
        join pg_class c on c.oid = i.relation
        join pg_namespace n on n.oid = c.relnamespace
        cross join lateral (
            select 'usage' as right_name, format('schema %I', n.nspname) as object
            union all
            select 'select', format('table %I.%I', n.nspname, c.relname)
            union all
            select 'update (' || string_agg(format('%I', i.columns ->> u.role), ', ') || ')', format('table %I.%I', n.nspname, c.relname)
            from unnest('{processed_at,error,retry_count}'::text[]) as u(role)
            where i.style = 'update' and i.columns ? u.role
            having count(*) > 0
        ) r
        where i.relation = _worker_rights.inbox;
    end;
comment on function postbox._worker_rights(regclass) is 'Private: what working on the messages of an inbox needs';

create or replace function postbox._change_role(verb text, role text, grantee regrole, outboxes regclass[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $function$
declare
    statement constant text := case verb when 'grant' then 'grant %s on %s to %I' else 'revoke %s on %s from %I' end;
    grantee_name name;
    target regclass;
    rights record;
    is_inbox boolean;
    of_inboxes constant boolean := role in ('receiver', 'worker');
    of_tables constant boolean := of_inboxes or role in ('publisher', 'maintainer');
    noun constant text := case when of_inboxes then 'inbox' else 'outbox' end;
    needed text;
begin
    select r.rolname into grantee_name from pg_roles r where r.oid = grantee;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('role %s does not exist', coalesce('"' || grantee::text || '"', 'NULL')),
            hint = 'Create it first: CREATE ROLE.';
    end if;
    if role is null or role not in ('publisher', 'consumer', 'receiver', 'worker', 'operator', 'monitor', 'maintainer') then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('%s is not one of publisher, consumer, receiver, worker, operator, monitor, maintainer', coalesce('"' || role || '"', 'NULL')),
            hint = format('For instance: postbox.%s_role(''monitor'', %L).', verb, grantee::text);
    end if;
    if of_tables <> (coalesce(cardinality(outboxes), 0) > 0) then
        raise exception using errcode = 'invalid_parameter_value',
            message = case when of_tables then format('a %s needs at least one %s', role, noun)
                else format('the role of a %s is not for single outboxes or inboxes', role) end,
            hint = case when of_tables then format('For instance: postbox.%s_role(%L, %L, ''{orders}'').', verb, role, grantee::text)
                else 'Leave the list out.' end;
    end if;
    foreach target in array coalesce(outboxes, '{}') loop
        is_inbox := exists (select from postbox.inbox i where i.relation = target);
        if target is null or not ((is_inbox and (of_inboxes or role = 'maintainer'))
                or (not of_inboxes and exists (select from postbox._marker m where m.outbox = target))) then
            raise exception using errcode = 'wrong_object_type',
                message = format('%s is not an %s', coalesce('"' || target::text || '"', 'NULL'), noun),
                hint = format('postbox.%s_status() lists the %ses.', noun, noun);
        end if;
    end loop;

    -- What everybody in a role of single tables has stays while the grantee may be in it elsewhere; it gives nothing by itself.
    if verb = 'grant' or not of_tables then
        for rights in select r.right_name, r.object from postbox._role_rights(role) r loop
            execute format(statement, rights.right_name, rights.object, grantee_name);
        end loop;
    end if;
    foreach target in array coalesce(outboxes, '{}') loop
        for rights in
            select r.right_name, r.object
            from (select * from postbox._publisher_rights(target) where role = 'publisher' union all
                  select * from postbox._receiver_rights(target) where role = 'receiver' union all
                  select * from postbox._worker_rights(target) where role = 'worker' union all
                  select * from postbox._maintainer_rights(target) where role = 'maintainer') r
            where verb = 'grant' or r.object not like 'schema %'
        loop
            execute format(statement, rights.right_name, rights.object, grantee_name);
        end loop;
        -- GRANT by somebody who may not grant is a warning only.
        needed := case role when 'publisher' then 'insert' when 'receiver' then 'insert' when 'worker' then 'select'
            else case when exists (select from postbox.inbox i where i.relation = target) then 'delete' else 'truncate' end end;
        if verb = 'grant' and not has_table_privilege(grantee, target, needed) then
            raise exception using errcode = 'insufficient_privilege',
                message = format('role "%s" may not grant %s on %s "%s"', current_user, upper(needed), noun, target),
                hint = 'Let the owner of the table grant it.';
        end if;
    end loop;
    if verb = 'grant' and role in ('consumer', 'operator')
        and not exists (select from pg_roles r where r.oid = grantee and (r.rolreplication or r.rolsuper)) then
        raise warning using
            message = format('role "%s" has no REPLICATION attribute, which %s', grantee_name,
                case role when 'consumer' then 'reading a slot needs' else 'making and dropping consumer groups needs' end),
            hint = format('ALTER ROLE %I REPLICATION. Members of a role do not inherit the attribute: who logs in needs it.', grantee_name);
    end if;
end
$function$;
comment on function postbox._change_role(text, text, regrole, regclass[]) is 'Private: grant_role and revoke_role';

-- The names of roles and outboxes are looked up where the call is parsed, along the caller's path.
create or replace function postbox.grant_role(role text, grantee regrole, outboxes regclass[] default null) returns void
    language sql volatile
    begin atomic
        select postbox._change_role('grant', role, grantee, outboxes);
    end;
comment on function postbox.grant_role(text, regrole, regclass[]) is
    'Grants what a publisher or maintainer (of these outboxes; a maintainer of inboxes too), receiver or worker (of these inboxes), consumer, operator or monitor needs';

create or replace function postbox.revoke_role(role text, grantee regrole, outboxes regclass[] default null) returns void
    language sql volatile
    begin atomic
        select postbox._change_role('revoke', role, grantee, outboxes);
    end;
comment on function postbox.revoke_role(text, regrole, regclass[]) is 'Revokes what grant_role grants';

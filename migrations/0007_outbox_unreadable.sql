-- Rows that were there already wait in quarantine for an operator.
WITH unreadable AS (
    DELETE FROM outbox
    WHERE octet_length(event_type) > 255 OR octet_length(trace_id) > 255
       OR occurred_at NOT BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999+00'
    RETURNING *
)
INSERT INTO outbox_quarantine (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload, reason)
SELECT event_id, event_type, user_id, user_version, trace_id, occurred_at, payload,
       'its event_type or trace_id is longer than 255 bytes, or its occurred_at not between the years 1 and 9999'
FROM unreadable ON CONFLICT (event_id) DO NOTHING;

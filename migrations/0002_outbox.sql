-- Events whose change is committed and which the broker has not confirmed yet. A row is written by the statement that
-- changes the user and deleted after the broker's confirm: one INSERT and one DELETE an event, no status column.
CREATE TABLE outbox (
    -- Drawn after the user's row lock, so the events of one user are in order. CACHE 1: a larger cache would break that.
    seq          bigint GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
    event_id     uuid NOT NULL,
    event_type   text NOT NULL,
    user_id      bigint NOT NULL,         -- no foreign key: a deleted user's events still wait here
    user_version bigint NOT NULL,
    trace_id     text NOT NULL,
    traceparent  text,                    -- W3C trace context; empty until tracing is exported
    occurred_at  timestamptz(3) NOT NULL,
    -- The event's `data`. Oversize fails the request that writes it, never the relay.
    payload      json NOT NULL CHECK (octet_length(payload::text) <= 65536)
) WITH (
    -- Rows live for milliseconds: vacuum by count, at full speed, and never take the lock that truncation needs.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_truncate = false
);

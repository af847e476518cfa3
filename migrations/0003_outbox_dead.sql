-- Events that the broker will not have: publishing one closed the channel three times, while others passed. An operator
-- puts them back (`outbox dead retry`) or gives them up (`outbox dead drop`).
CREATE TABLE outbox_dead (
    event_id     uuid PRIMARY KEY,
    event_type   text NOT NULL,
    user_id      bigint NOT NULL,
    user_version bigint NOT NULL,
    trace_id     text NOT NULL,
    traceparent  text,
    occurred_at  timestamptz(3) NOT NULL,
    payload      json NOT NULL,
    reason       text NOT NULL,                         -- what the broker said
    died_at      timestamptz(3) NOT NULL DEFAULT now()
);

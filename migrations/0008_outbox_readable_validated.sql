-- By a lock that holds up neither reads nor writes.
ALTER TABLE outbox
    VALIDATE CONSTRAINT outbox_event_type_length,
    VALIDATE CONSTRAINT outbox_trace_id_length,
    VALIDATE CONSTRAINT outbox_occurred_at_finite;

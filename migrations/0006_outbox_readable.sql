-- Rows that no relay could publish, such as some that are written by hand, are refused where they are written. Not valid yet, so that
-- the table is not read under this lock.
ALTER TABLE outbox
    ADD CONSTRAINT outbox_event_type_length CHECK (octet_length(event_type) <= 255) NOT VALID,
    ADD CONSTRAINT outbox_trace_id_length CHECK (octet_length(trace_id) <= 255) NOT VALID,
    ADD CONSTRAINT outbox_occurred_at_finite
        CHECK (occurred_at BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999+00') NOT VALID;

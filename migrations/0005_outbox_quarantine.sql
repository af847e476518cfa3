-- One word for an event that the broker rejects for good. Names alone change; no row is read or written.
ALTER TABLE outbox_dead RENAME TO outbox_quarantine;
ALTER TABLE outbox_quarantine RENAME COLUMN died_at TO quarantined_at;
ALTER INDEX outbox_dead_pkey RENAME TO outbox_quarantine_pkey;

-- Never written: tracing is not exported.
ALTER TABLE outbox DROP COLUMN traceparent;
ALTER TABLE outbox_quarantine DROP COLUMN traceparent;

INSERT INTO outbox_quarantine (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload, reason) VALUES
    ('00000000-0000-4000-8000-000000000005', 'user.updated', 1, 3, 'step-5', '2025-01-01 00:00:02+00', '{}', 'refused');
-- What later steps refuse.
INSERT INTO outbox (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload) VALUES
    ('00000000-0000-4000-8000-000000000051', repeat('x', 256), 1, 4, 'step-5', '2025-01-01 00:00:03+00', '{}'),
    ('00000000-0000-4000-8000-000000000052', 'user.updated', 1, 5, repeat('x', 256), '2025-01-01 00:00:04+00', '{}'),
    ('00000000-0000-4000-8000-000000000053', 'user.updated', 1, 6, 'step-5', 'infinity', '{}');

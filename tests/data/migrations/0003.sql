INSERT INTO outbox_dead (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload, reason) VALUES
    ('00000000-0000-4000-8000-000000000003', 'user.updated', 1, 2, 'step-3', '2025-01-01 00:00:01+00', '{}', 'refused');

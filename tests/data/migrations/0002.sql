INSERT INTO outbox (event_id, event_type, user_id, user_version, trace_id, traceparent, occurred_at, payload) VALUES
    ('00000000-0000-4000-8000-000000000002', 'user.created', 1, 1, 'step-2', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
     '2025-01-01 00:00:00+00', '{"name": "Анна", "surname": "Каренина"}');

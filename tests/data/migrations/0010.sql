INSERT INTO outbox_held (seq, event_id, event_type, user_id, user_version, trace_id, occurred_at, payload) OVERRIDING SYSTEM VALUE VALUES
    (1000, '00000000-0000-4000-8000-000000000010', 'user.updated', 1, 7, 'step-10', '2025-01-01 00:00:05+00',
     '{"name": "Анна", "surname": "Вронская"}');

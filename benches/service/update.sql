\set id random(1, :users)
\set value random(1, 1000000000)
WITH current AS (
    SELECT id, name, surname, created_at, updated_at FROM users WHERE id = :id FOR NO KEY UPDATE
), updated AS (
    UPDATE users
    SET name = coalesce(:value::text, users.name), surname = coalesce(:value::text, users.surname),
        password = coalesce(NULL, users.password), version = users.version + 1, updated_at = clock_timestamp()
    FROM current
    WHERE users.id = current.id AND (current.name <> :value::text OR current.surname <> :value::text)
    RETURNING users.id, users.name, users.surname, users.version, users.created_at, users.updated_at
), event AS (
    INSERT INTO outbox (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload)
    SELECT gen_random_uuid(), 'user.updated', id, version, 'f47ac10b-58cc-4372-a567-0e02b2c3d479', updated_at,
           row_to_json((SELECT data FROM (SELECT name, surname) AS data))
    FROM updated
)
SELECT id, name, surname, created_at, updated_at, true FROM updated
UNION ALL
SELECT id, name, surname, created_at, updated_at, false FROM current WHERE NOT EXISTS (SELECT FROM updated);

SELECT id, name, surname, created_at, updated_at FROM users ORDER BY id LIMIT 100 OFFSET 0;

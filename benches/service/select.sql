\set id random(1, :users)
SELECT id, name, surname, created_at, updated_at FROM users WHERE id = :id;

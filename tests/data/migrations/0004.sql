-- Counted by the trigger, the others by the migration.
INSERT INTO users (name, surname, password) VALUES
    ('Вера', 'Павлова', '$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA');
DELETE FROM users WHERE name = 'Борис';

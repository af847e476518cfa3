-- How many users there are, so that a page of the list does not count them: the sum over a few rows. A statement that adds or
-- removes users changes a row that nobody holds, or adds one, so that writers never wait for each other.
CREATE TABLE users_count (
    slot  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    users bigint NOT NULL                                  -- may be negative: only the sum means something
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE FUNCTION count_users() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    difference bigint := (SELECT count(*) FROM changed);
BEGIN
    IF difference = 0 THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'DELETE' THEN
        difference := -difference;
    END IF;
    UPDATE users_count SET users = users + difference
    WHERE slot = (SELECT slot FROM users_count ORDER BY slot LIMIT 1 FOR UPDATE SKIP LOCKED);
    IF NOT FOUND THEN
        INSERT INTO users_count (users) VALUES (difference);
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION count_no_users() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    DELETE FROM users_count;
    RETURN NULL;
END $$;

-- Before the users are counted: their table is locked from here to the end of the migration.
CREATE TRIGGER count_inserted AFTER INSERT ON users
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_users();
CREATE TRIGGER count_deleted AFTER DELETE ON users
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_users();
CREATE TRIGGER count_truncated AFTER TRUNCATE ON users
    FOR EACH STATEMENT EXECUTE FUNCTION count_no_users();

INSERT INTO users_count (users) SELECT count(*) FROM users;

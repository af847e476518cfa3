-- Events that wait for longer: behind a queue that refuses their type, or behind many of the same user. The relay moves them here, so that
-- it does not walk over them whenever it reads new ones. Inherited, so that `outbox` still names all that waits: who counts, deletes or
-- drains it there needs to know of no other table, nor does a replica of an older version.
CREATE TABLE outbox_held (
    PRIMARY KEY (seq),
    -- Queues are bound by type, so each type waits for itself.
    lane text NOT NULL GENERATED ALWAYS AS (
        CASE WHEN event_type IN ('user.created', 'user.updated', 'user.deleted') THEN event_type ELSE 'others' END
    ) STORED
) INHERITS (outbox) WITH (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 5000,
    vacuum_truncate = false
);
CREATE INDEX outbox_held_lane ON outbox_held (lane, seq);
CREATE INDEX outbox_held_user ON outbox_held (user_id, seq);

-- It belongs to whom `outbox` does, and a login that owns nothing needs here what it has there.
DO $$
DECLARE
    owner   regrole := (SELECT relowner FROM pg_class WHERE oid = 'outbox'::regclass);
    granted record;
BEGIN
    FOR granted IN
        SELECT privilege_type AS privilege, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS login
        FROM pg_class, aclexplode(relacl)
        WHERE pg_class.oid = 'outbox'::regclass AND grantee <> relowner AND privilege_type IN ('SELECT', 'INSERT')
    LOOP
        EXECUTE format('GRANT %s ON outbox_held TO %s', granted.privilege, granted.login);
    END LOOP;
    IF owner <> (SELECT relowner FROM pg_class WHERE oid = 'outbox_held'::regclass) THEN
        EXECUTE format('ALTER TABLE outbox_held OWNER TO %s', owner);
    END IF;
END $$;

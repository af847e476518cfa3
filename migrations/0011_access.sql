-- Who may call the service. A token is stored as its SHA-256 alone. Two rows have one name while a key is rotated.
CREATE TABLE api_keys (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text NOT NULL CHECK (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    scopes       text[] NOT NULL CHECK (cardinality(scopes) > 0),
    token_sha256 bytea NOT NULL UNIQUE CHECK (octet_length(token_sha256) = 32),
    created_at   timestamptz(3) NOT NULL DEFAULT now(),
    expires_at   timestamptz(3),
    last_used_at timestamptz(3)                                                -- to the minute
);

-- Who made the change, such as `key:front-end`; NULL for a caller without a credential. `outbox_held` inherits it.
ALTER TABLE outbox ADD COLUMN actor text CHECK (octet_length(actor) <= 300);
ALTER TABLE outbox_quarantine ADD COLUMN actor text;

-- It belongs to whom `outbox` does. A login that owns nothing and writes events reads keys, and notes their use.
DO $$
DECLARE
    owner   regrole := (SELECT relowner FROM pg_class WHERE oid = 'outbox'::regclass);
    granted record;
BEGIN
    FOR granted IN
        SELECT DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS login
        FROM pg_class, aclexplode(relacl)
        WHERE pg_class.oid = 'outbox'::regclass AND grantee <> relowner AND privilege_type = 'INSERT'
    LOOP
        EXECUTE format('GRANT SELECT, UPDATE (last_used_at) ON api_keys TO %s', granted.login);
    END LOOP;
    IF owner <> (SELECT relowner FROM pg_class WHERE oid = 'api_keys'::regclass) THEN
        EXECUTE format('ALTER TABLE api_keys OWNER TO %s', owner);
    END IF;
END $$;

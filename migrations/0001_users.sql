-- The record of truth. Lengths are checked by the service, which can name the field; the database keeps what no client may break.
CREATE TABLE users (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL,
    surname    text NOT NULL,
    password   text NOT NULL CHECK (password LIKE '$argon2id$%'), -- a PHC string, never the password itself
    version    bigint NOT NULL DEFAULT 1,                         -- 1 at creation, one more with each change
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now()
);

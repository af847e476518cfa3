-- Which server held the database at the last start, so that a restore or a failover is noticed. One row at most.
CREATE TABLE known_server (
    singleton         boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    system_identifier text NOT NULL,
    timeline          bigint NOT NULL
);

-- Runs of `after-restore`, which lifts versions and ids beyond what may have been handed out before; each can be taken up again.
CREATE TABLE lifts (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    server     text NOT NULL,                      -- where it was begun: a restore may bring back one that had not ended
    step       bigint NOT NULL CHECK (step > 0),
    republish  boolean NOT NULL,
    trace_id   text NOT NULL,                      -- of the events
    last_id    bigint NOT NULL,                    -- new users have higher ids
    lifted_to  bigint NOT NULL DEFAULT 0,          -- users up to this one are lifted
    lifted     bigint NOT NULL DEFAULT 0,          -- how many
    began_at   timestamptz NOT NULL DEFAULT now(),
    ended_at   timestamptz
);

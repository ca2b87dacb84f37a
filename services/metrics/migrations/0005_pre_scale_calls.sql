-- Calls of the hooks that start and stop workers. A call is written before it is made, so that the next leader does not repeat it.
CREATE TABLE scale_calls (
    -- For a hook to recognize a repetition: the same in all attempts.
    key uuid PRIMARY KEY,
    pool text NOT NULL,
    began_at timestamptz NOT NULL,
    -- Ready and starting workers.
    current integer NOT NULL,
    wanted integer NOT NULL,
    reason text NOT NULL,
    attempts integer NOT NULL,
    -- When the last attempt began.
    tried_at timestamptz NOT NULL,
    -- NULL while it runs, and for good if its replica ended before.
    ended_at timestamptz,
    -- Why the last attempt failed; empty if it did not.
    problem text NOT NULL DEFAULT '',
    -- Attempts that failed in a row, also of calls before this one.
    failures integer NOT NULL
);

CREATE INDEX scale_calls_by_pool ON scale_calls (pool, began_at DESC);
CREATE INDEX scale_calls_by_time ON scale_calls (began_at);

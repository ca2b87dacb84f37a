-- Requests that a caller gave an idempotency key: each is answered once, and its answer is kept for a day.
CREATE TABLE idempotency_keys (
    owner uuid NOT NULL,
    key varchar(255) NOT NULL,
    -- HMAC-SHA256 of the request; another request under the same key is refused.
    fingerprint bytea NOT NULL,
    -- The request that runs it, or ran it. Another one that takes it over writes its own id here, and with that the first has lost it.
    request_id uuid NOT NULL UNIQUE,
    -- Fixed at its first admission, so that whoever takes it over draws the same tokens.
    seed bigint NOT NULL,
    -- How many requests have run it: one, and one more for each that took it over.
    attempt integer NOT NULL DEFAULT 1,
    state varchar(10) NOT NULL CHECK (state IN ('running', 'ended', 'failed')),
    -- Sealed; NULL while it runs, and where it was too long.
    answer bytea,
    -- The node id of the gateway that runs it.
    gateway varchar(56) NOT NULL,
    -- Whoever asks after this may take it over, if it still runs.
    lease_until timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (owner, key)
);

CREATE INDEX idempotency_keys_by_end ON idempotency_keys (expires_at);

-- A request that another one takes over is paid by that one alone, and what the first held is free at once: its worker's receipt would
-- have the same answer paid twice.
CREATE FUNCTION release_what_was_taken_over() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM settle(OLD.request_id, 0, 'expired');
    RETURN NULL;
END
$$;

CREATE TRIGGER taken_over AFTER UPDATE OF request_id ON idempotency_keys FOR EACH ROW
WHEN (OLD.state = 'running' AND OLD.request_id <> NEW.request_id) EXECUTE FUNCTION release_what_was_taken_over();

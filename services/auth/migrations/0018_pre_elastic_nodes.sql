-- Operators and backup agents log in at NATS without a certificate; their rows let administrators revoke them.
ALTER TABLE nodes DROP CONSTRAINT nodes_role_check;
ALTER TABLE nodes ADD CONSTRAINT nodes_role_check
    CHECK (role IN ('auth', 'gateway', 'worker', 'metrics', 'web', 'client', 'operator', 'backup'));

-- A ticket for replicas of the operator belongs to no user, and neither do its nodes.
ALTER TABLE tickets ALTER COLUMN owner DROP NOT NULL;

-- Tickets of replicas that come and go. The most integer stands for any number of uses.
ALTER TABLE tickets
    -- How many of its nodes may be active at once; null for any number.
    ADD COLUMN active_most integer CHECK (active_most > 0),
    -- Where its nodes may log in from; empty for everywhere.
    ADD COLUMN networks text[] NOT NULL DEFAULT '{}';

ALTER TABLE nodes
    -- When auth last heard an announcement; only for nodes with a ticket, and at most every 15 s.
    ADD COLUMN heard_at timestamptz,
    -- When it stopped in order; null while it runs, or was killed.
    ADD COLUMN left_at timestamptz;

CREATE INDEX nodes_by_ticket ON nodes (ticket_id) WHERE state <> 'revoked';

-- A killed node's place is free a minute after it was last heard.
CREATE FUNCTION active_nodes(ticket text) RETURNS bigint LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT count(*) FROM nodes
    WHERE ticket_id = ticket AND state <> 'revoked' AND left_at IS NULL
        AND coalesce(heard_at, joined_at) > now() - interval '60 seconds'
$$;

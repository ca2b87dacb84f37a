-- Nodes that were let in, the tickets that let them in, and what the revocation list is made from.

CREATE TABLE tickets (
    id text PRIMARY KEY,
    -- The nkey that signs for it; its seed is in the ticket and nowhere else.
    public_key text NOT NULL UNIQUE,
    role text NOT NULL CHECK (role IN ('gateway', 'worker', 'metrics', 'web', 'client')),
    -- A user. No foreign key, here and below: a deleted account must not take the record of its nodes with it.
    owner uuid NOT NULL,
    labels jsonb NOT NULL,
    needs_approval boolean NOT NULL,
    uses integer NOT NULL CHECK (uses > 0),
    used integer NOT NULL DEFAULT 0 CHECK (used BETWEEN 0 AND uses),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz
);

CREATE TABLE nodes (
    -- Its public nkey.
    id text PRIMARY KEY CHECK (id ~ '^U[A-Z2-7]{55}$'),
    role text NOT NULL CHECK (role IN ('auth', 'gateway', 'worker', 'metrics', 'web', 'client')),
    state text NOT NULL DEFAULT 'active' CHECK (state IN ('pending', 'active', 'revoked')),
    name text NOT NULL DEFAULT '',
    -- A user; null for a node of the house.
    owner uuid,
    labels jsonb NOT NULL DEFAULT '{}',
    -- The ticket that it came in with last; null for a node of the house.
    ticket_id text,
    joined_at timestamptz NOT NULL DEFAULT now(),
    -- Since when nothing was heard of it: enrolment, approval and renewal set it.
    idle_since timestamptz NOT NULL DEFAULT now(),
    renewed_at timestamptz,
    certified_until timestamptz,
    revoked_at timestamptz,
    reason text NOT NULL DEFAULT ''
);

CREATE INDEX nodes_by_revocation ON nodes (revoked_at) WHERE state = 'revoked';

-- One row.
CREATE TABLE mesh_state (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    -- Of the revocation list. It never falls behind the clock: nodes refuse a lower number than they have seen, so a database
    -- that was restored or made anew must go on above every number that the one before it gave out.
    number bigint NOT NULL DEFAULT extract(epoch FROM now())::bigint,
    -- Of the topic secrets.
    epoch bigint NOT NULL DEFAULT 1,
    -- Null before the first change.
    epoch_changed_at timestamptz,
    -- An epoch that began before this is known to somebody who is cut off.
    last_revoked_at timestamptz
);

INSERT INTO mesh_state DEFAULT VALUES;

-- Triggers, so that an UPDATE by hand in psql cuts a node off as fast as revokeNode, on every replica of auth.
CREATE FUNCTION mesh_changed() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM pg_notify('auth_mesh', '');
    RETURN NULL;
END
$$;

CREATE TRIGGER mesh_state_changed AFTER UPDATE ON mesh_state FOR EACH STATEMENT EXECUTE FUNCTION mesh_changed();

CREATE FUNCTION date_revocation() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    NEW.revoked_at := CASE WHEN NEW.state = 'revoked' THEN coalesce(NEW.revoked_at, now()) END;
    RETURN NEW;
END
$$;

CREATE TRIGGER nodes_revoked_at BEFORE INSERT OR UPDATE ON nodes FOR EACH ROW EXECUTE FUNCTION date_revocation();

-- The list is another one now. A revocation also begins a new epoch, at most one an hour; what is left over is caught up with
-- by the query rotate_epoch.
CREATE FUNCTION revocations_changed() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE mesh_state SET
        number = greatest(number + 1, extract(epoch FROM now())::bigint),
        last_revoked_at = now(),
        epoch = CASE WHEN epoch_changed_at > now() - interval '1 hour' THEN epoch ELSE epoch + 1 END,
        epoch_changed_at = CASE WHEN epoch_changed_at > now() - interval '1 hour' THEN epoch_changed_at ELSE now() END;
    RETURN NULL;
END
$$;

CREATE TRIGGER nodes_revoked AFTER UPDATE OF id, state ON nodes FOR EACH ROW
    WHEN ('revoked' IN (OLD.state, NEW.state) AND (OLD.state, OLD.id) IS DISTINCT FROM (NEW.state, NEW.id))
    EXECUTE FUNCTION revocations_changed();
CREATE TRIGGER nodes_banned AFTER INSERT ON nodes FOR EACH ROW
    WHEN (NEW.state = 'revoked') EXECUTE FUNCTION revocations_changed();
CREATE TRIGGER nodes_forgotten AFTER DELETE ON nodes FOR EACH ROW
    WHEN (OLD.state = 'revoked') EXECUTE FUNCTION revocations_changed();
CREATE TRIGGER nodes_emptied AFTER TRUNCATE ON nodes FOR EACH STATEMENT EXECUTE FUNCTION revocations_changed();

-- Which workers each replica knew, so that one that is gone is missed over a restart. A replica writes and reads its own rows.
CREATE TABLE attendance (
    replica text NOT NULL,
    -- The worker.
    node text NOT NULL,
    -- The last best path to it, such as nats or punched.
    path text NOT NULL,
    -- NULL while it is there.
    gone_at timestamptz,
    why text NOT NULL,
    -- When the replica last looked, to five minutes.
    held_at timestamptz NOT NULL,
    PRIMARY KEY (replica, node)
);

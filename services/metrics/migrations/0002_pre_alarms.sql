-- What each replica knows of alerts, so that it goes on with them after a restart. A replica writes its own rows and reads all.
CREATE TABLE alarms (
    -- Of the replica.
    node text NOT NULL,
    -- Made of the rule and the labels: the same at every replica.
    id text NOT NULL,
    -- When its condition held first.
    since timestamptz NOT NULL,
    rule text NOT NULL,
    severity text NOT NULL,
    -- JSON, in which every character has its way of being written.
    labels text NOT NULL,
    value double precision NOT NULL,
    -- Its condition has held for long enough.
    firing boolean NOT NULL,
    -- NULL while it lasts.
    ended timestamptz,
    -- Who looks after it, and since when they do; empty and NULL for nobody.
    seen_by text NOT NULL,
    seen_at timestamptz,
    -- Somebody was told of it, and not of its end.
    told boolean NOT NULL,
    -- When it was last known to last, to five minutes.
    held_at timestamptz NOT NULL,
    PRIMARY KEY (node, id, since)
);

-- Those of all replicas.
CREATE TABLE silences (
    id text PRIMARY KEY,
    until timestamptz NOT NULL,
    -- By somebody, before its time; it stays for a while, so that every replica hears of it.
    ended boolean NOT NULL DEFAULT false,
    -- What it covers, by whom and why: JSON.
    said text NOT NULL
);

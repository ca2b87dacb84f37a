-- Which workers told wrong numbers, for all gateways: strikes add up over them, and a quarantine survives their restarts.
CREATE TABLE worker_strikes (
    node varchar(56) PRIMARY KEY,
    -- The last ones that count for the next quarantine.
    struck_at timestamptz[] NOT NULL DEFAULT '{}',
    quarantined_until timestamptz
);

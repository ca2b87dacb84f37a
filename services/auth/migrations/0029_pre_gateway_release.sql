-- The oldest release whose gateways may answer requests, as the gateways say (services/auth/nodes/gateway_releases.py).
CREATE TABLE gateway_release (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    needed text NOT NULL
);
INSERT INTO gateway_release (needed) VALUES ('0.3.0');

-- Verifying reads the entries of the open day and, for all days before it, what signed checkpoints say.

-- A day that is closed. Each checkpoint names the one before it through its hash.
CREATE TABLE ledger_checkpoints (
    day date PRIMARY KEY,
    -- How many entries the day has, and what they come to in each account.
    entries bigint NOT NULL,
    included_micro bigint NOT NULL,
    balance_micro bigint NOT NULL,
    revenue_micro bigint NOT NULL,
    grants_micro bigint NOT NULL,
    payments_micro bigint NOT NULL,
    entries_hash bytea NOT NULL,
    -- Of all rows of ledger_balances after this day.
    balances_hash bytea NOT NULL,
    hash bytea NOT NULL,
    -- The signature over the hash, as one line of JSON.
    anchor text NOT NULL
);

-- What the entries of all closed days come to.
CREATE TABLE ledger_balances (
    owner uuid PRIMARY KEY,
    included_micro bigint NOT NULL,
    balance_micro bigint NOT NULL
);

ALTER TABLE ledger_balances ENABLE ROW LEVEL SECURITY;
ALTER TABLE ledger_balances FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON ledger_balances USING (sees(owner));

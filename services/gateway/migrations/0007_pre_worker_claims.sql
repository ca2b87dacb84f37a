-- Which worker runs a request: after a gateway died, only that worker's receipt is believed. Both defaults are constants, so no table is
-- rewritten; where somebody holds the table, this gives up after a second and the start tries again.
SET LOCAL lock_timeout = '1s';

ALTER TABLE reservations
    -- Node ids in the order of their claims; the last one runs it. Empty until the first claim.
    ADD COLUMN workers varchar(56)[] NOT NULL DEFAULT '{}',
    -- Tokens of the answer that the caller had when the last of them claimed it.
    ADD COLUMN delivered_before integer NOT NULL DEFAULT 0,
    -- When the last of them claimed it.
    ADD COLUMN claimed_at timestamptz;

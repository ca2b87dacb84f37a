-- Release 0.3 called these; the columns `granted_micro` and `month` of accounts were theirs.
SET LOCAL lock_timeout = '1s';

-- Until release 0.3, tiers included credits, which its gateways spend until they are gone. They were never meant as money, and end here.
SET LOCAL aimesh.tenant = '*';
WITH ended AS MATERIALIZED (
    SELECT owner, included_micro, gen_random_uuid() AS transfer FROM accounts WHERE included_micro > 0 ORDER BY owner FOR UPDATE
),
booked AS (
    INSERT INTO entries (transfer, kind, account, owner, amount_micro, note, at)
    SELECT transfer, 'expiry', side.account, owner, side.micro, 'credits included until release 0.3', clock_timestamp()
    FROM ended, LATERAL (VALUES ('included', -included_micro), ('grants', included_micro)) AS side (account, micro)
)
UPDATE accounts SET included_micro = 0 FROM ended WHERE accounts.owner = ended.owner;

DROP FUNCTION reserve_batch(
    uuid[], uuid[], uuid[], text[], bigint[], integer[], integer[], integer[], integer[], bigint[], bigint[], bigint[], boolean[], bigint[], text,
    double precision
);
DROP FUNCTION reserve(
    uuid, uuid, uuid, text, bigint, text, double precision, integer, integer, integer, integer, bigint, bigint, bigint, boolean, bigint
);
DROP FUNCTION extend_hold(uuid, integer, integer, integer, bigint, bigint, boolean, bigint);
DROP FUNCTION top_up(uuid, uuid, bigint, text, bigint);
DROP FUNCTION open_account(uuid, bigint);
DROP FUNCTION settle_batch(uuid[], bigint[], text[]);
DROP FUNCTION settle(uuid, bigint, text);
ALTER TABLE accounts DROP COLUMN granted_micro, DROP COLUMN month;

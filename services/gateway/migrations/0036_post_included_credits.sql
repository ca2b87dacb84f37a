-- Release 0.3 called these; the columns `granted_micro` and `month` of accounts were theirs.
SET LOCAL lock_timeout = '1s';
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

-- Transfers of a period have derived ids: after a restore, the same period ends again, and what was told of it is told under the same id.
SET LOCAL lock_timeout = '1s';

-- A transfer of an account's period; the first one has the ordinal 0. A null period is the time before the first.
CREATE FUNCTION period_transfer(what text, the_owner uuid, period timestamptz, ordinal integer) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
    SELECT derive_id(concat_ws('/', what, (extract(epoch FROM period) * 1000000)::bigint, ordinal), the_owner)
$$;

-- The first of them that a locked account doesn't have yet: a period may grant twice, and end twice if plans change.
CREATE FUNCTION next_transfer(what text, the_owner uuid, period timestamptz) RETURNS uuid
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    ordinal integer := 0;
BEGIN
    WHILE EXISTS (SELECT FROM entry_keys WHERE transfer = period_transfer(what, the_owner, period, ordinal)) LOOP
        ordinal := ordinal + 1;
    END LOOP;
    RETURN period_transfer(what, the_owner, period, ordinal);
END
$$;

-- As in 0035, with derived ids. Ends the period of a locked account if it is over, and the first time: unused tokens are lost, and what the
-- balance owes is billed. Before its first period, an account has spent without owing it.
CREATE OR REPLACE FUNCTION end_period(account accounts, moment timestamptz) RETURNS accounts
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    owes boolean := account.balance_micro < 0 AND account.anchor IS NOT NULL;
    transfer uuid;
    begun timestamp;
    months integer;
BEGIN
    IF account.period_end > moment THEN
        RETURN account;
    END IF;
    transfer := next_transfer(CASE WHEN owes THEN 'charge' ELSE 'expiry' END, account.owner, account.period_start);
    IF owes THEN
        INSERT INTO owed (id, owner, micro, period_start, at)
        VALUES (transfer, account.owner, -account.balance_micro, account.period_start, moment);
    END IF;
    INSERT INTO entries (transfer, kind, account, owner, amount_micro, amount_tokens, period, at)
    SELECT transfer, side.kind, side.account, account.owner, side.micro, side.tokens, account.period_start, moment
    FROM (VALUES
        ('expiry', 'allowance', NULL, -account.allowance_tokens),
        ('expiry', 'grants', NULL, account.allowance_tokens),
        (CASE WHEN account.anchor IS NULL THEN 'expiry' ELSE 'invoice' END, 'balance', -least(account.balance_micro, 0), NULL),
        (CASE WHEN account.anchor IS NULL THEN 'expiry' ELSE 'invoice' END, 'billed', least(account.balance_micro, 0), NULL)
    ) AS side (kind, account, micro, tokens)
    WHERE coalesce(side.micro, side.tokens) <> 0;
    account.anchor := coalesce(account.anchor, moment);
    begun := account.anchor AT TIME ZONE 'UTC';
    months := 12 * (extract(year FROM moment AT TIME ZONE 'UTC') - extract(year FROM begun))
        + extract(month FROM moment AT TIME ZONE 'UTC') - extract(month FROM begun);
    IF begun + make_interval(months => months) > moment AT TIME ZONE 'UTC' THEN
        months := months - 1;
    END IF;
    account.period_start := (begun + make_interval(months => months)) AT TIME ZONE 'UTC';
    account.period_end := (begun + make_interval(months => months + 1)) AT TIME ZONE 'UTC';
    UPDATE accounts
    SET anchor = account.anchor, period_start = account.period_start, period_end = account.period_end,
        allowance_tokens = 0, granted_tokens = 0, balance_micro = greatest(balance_micro, 0)
    WHERE owner = account.owner RETURNING * INTO account;
    RETURN account;
END
$$;

-- As in 0035, with derived ids. An owner's account, locked. With a plan, it has the tokens of this period; included_tokens NULL: as
-- many as it needs. Whoever changes an account or what hangs on it calls this first: that lock is what makes sums exact.
CREATE OR REPLACE FUNCTION open_account(the_owner uuid, included_tokens bigint, has_plan boolean) RETURNS accounts
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    account accounts;
    moment timestamptz;
    more bigint;
BEGIN
    SELECT * INTO account FROM accounts WHERE owner = the_owner FOR UPDATE;
    IF NOT FOUND THEN
        INSERT INTO accounts (owner) VALUES (the_owner) ON CONFLICT DO NOTHING;
        SELECT * INTO account FROM accounts WHERE owner = the_owner FOR UPDATE;
    END IF;
    -- Read under the lock, so that an account's entries are in order of their ids.
    moment := clock_timestamp();
    IF NOT has_plan THEN
        RETURN account;
    END IF;
    account := end_period(account, moment);
    -- Who changes to a larger plan gets the difference at once.
    more := coalesce(included_tokens, 0) - account.granted_tokens;
    IF more > 0 THEN
        WITH transfer AS (SELECT next_transfer('grant', the_owner, account.period_start) AS id)
        INSERT INTO entries (transfer, kind, account, owner, amount_tokens, period, at)
        SELECT id, 'grant', side.account, the_owner, side.tokens, account.period_start, moment
        FROM transfer, LATERAL (VALUES ('allowance', more), ('grants', -more)) AS side (account, tokens);
        UPDATE accounts SET allowance_tokens = allowance_tokens + more, granted_tokens = granted_tokens + more
        WHERE owner = the_owner RETURNING * INTO account;
    END IF;
    RETURN account;
END
$$;

-- Tokens and credits follow what was paid at a provider, and what the customer didn't get back of it.
SET LOCAL lock_timeout = '1s';

-- What refunds and disputes took back of the amount.
ALTER TABLE payment_orders ADD COLUMN reversed_minor bigint NOT NULL DEFAULT 0;
ALTER TABLE accounts
    -- How many tokens a provider's payments give, until it says what was paid for its next period. Null: as many as the plan includes.
    ADD COLUMN paid_tokens bigint,
    -- The start of the provider's period to which the tokens belong.
    ADD COLUMN paid_period timestamptz;

-- Gives a locked account tokens, or takes them; the period's sum of grants stays.
CREATE FUNCTION move_tokens(account accounts, what text, tokens bigint, moment timestamptz) RETURNS void
LANGUAGE sql SET search_path FROM CURRENT AS $$
    WITH transfer AS (SELECT next_transfer(what, account.owner, account.period_start) AS id WHERE tokens <> 0)
    INSERT INTO entries (transfer, kind, account, owner, amount_tokens, period, at)
    SELECT id, what, side.account, move_tokens.account.owner, side.tokens, move_tokens.account.period_start, moment
    FROM transfer, LATERAL (VALUES ('allowance', move_tokens.tokens), ('grants', -move_tokens.tokens)) AS side (account, tokens);
    UPDATE accounts SET allowance_tokens = allowance_tokens + tokens WHERE owner = account.owner AND tokens <> 0;
$$;

-- What a provider's payment gave stays until the next period is paid, or isn't: see pay_period.
ALTER FUNCTION end_period(accounts, timestamptz) RENAME TO end_own_period;
CREATE FUNCTION end_period(account accounts, moment timestamptz) RETURNS accounts
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    is_paid boolean := account.paid_tokens IS NOT NULL;
    kept bigint := CASE WHEN is_paid THEN account.allowance_tokens ELSE 0 END;
    granted bigint := CASE WHEN is_paid THEN account.granted_tokens ELSE 0 END;
BEGIN
    IF account.period_end > moment THEN
        RETURN account;
    END IF;
    account.allowance_tokens := account.allowance_tokens - kept;
    PERFORM end_own_period(account, moment);
    UPDATE accounts SET allowance_tokens = kept, granted_tokens = granted, paid_period = CASE WHEN is_paid THEN paid_period END
    WHERE owner = account.owner RETURNING * INTO account;
    RETURN account;
END
$$;

-- As in 0058. An account whose plan is paid at a provider has no more tokens than were paid.
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
    more := coalesce(least(included_tokens, account.paid_tokens), 0) - account.granted_tokens;
    IF more > 0 THEN
        PERFORM move_tokens(account, 'grant', more, moment);
        UPDATE accounts SET granted_tokens = granted_tokens + more WHERE owner = the_owner RETURNING * INTO account;
    END IF;
    RETURN account;
END
$$;

-- Gives an account the tokens that were paid for a period of a provider, and ends those of another period; what was given before and isn't
-- paid any more goes, used or not. tokens NULL: as many as it needs. is_over: the subscription has ended: the tokens stay for the rest of the
-- account's period, and nothing changes if they belong to another period by now.
CREATE FUNCTION pay_period(the_owner uuid, period timestamptz, tokens bigint, is_over boolean) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    account accounts := open_account(the_owner, 0, true);
    moment timestamptz := clock_timestamp();
    has_passed boolean := is_over AND account.period_start > period + interval '1 day';
    more bigint;
BEGIN
    IF is_over AND account.paid_tokens IS NULL AND account.paid_period IS DISTINCT FROM period THEN
        RETURN;
    END IF;
    IF has_passed OR account.paid_period IS DISTINCT FROM period THEN
        PERFORM move_tokens(account, 'expiry', -account.allowance_tokens, moment);
        account.granted_tokens := 0;
    END IF;
    more := CASE WHEN has_passed THEN 0 ELSE coalesce(tokens, account.granted_tokens) END - account.granted_tokens;
    PERFORM move_tokens(account, CASE WHEN more > 0 THEN 'grant' ELSE 'expiry' END, more, moment);
    UPDATE accounts
    SET granted_tokens = account.granted_tokens + more, paid_tokens = CASE WHEN NOT is_over THEN tokens END, paid_period = period
    WHERE owner = the_owner;
END
$$;

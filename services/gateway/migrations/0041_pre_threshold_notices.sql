-- What owners of accounts should know, until auth has it and mails it: that a plan's tokens, a budget or the balance end, or a payment is late.
SET LOCAL lock_timeout = '1s';

CREATE TABLE threshold_notices (
    owner uuid NOT NULL,
    -- What it is about, such as one threshold of one budget in one period: auth mails each once.
    subject varchar(100) NOT NULL,
    notice jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner, subject)
);
ALTER TABLE threshold_notices ENABLE ROW LEVEL SECURITY;
ALTER TABLE threshold_notices FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON threshold_notices USING (sees(owner));

-- Whether a use reached this part of a limit, in percent, or all of it, on its way from before to after.
CREATE FUNCTION crosses(before bigint, after bigint, most bigint, percent integer) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT before < most AND after >= most OR before < most * percent / 100 AND after >= most * percent / 100
$$;

-- The same of an account to which a settlement has just added this much. Of the balance, a tenth of the last top-up: who buys more at once uses
-- more. Not nothing alone, which requests that are cut to the balance may never reach.
CREATE FUNCTION is_crossed(account accounts, micro bigint, tokens bigint) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT crosses(account.granted_tokens - account.allowance_tokens - tokens, account.granted_tokens - account.allowance_tokens, account.granted_tokens, 80)
        OR crosses(account.spent_micro - micro, account.spent_micro, account.budget_micro, 80)
        OR crosses(account.top_up_micro - account.balance_micro - micro, account.top_up_micro - account.balance_micro, account.top_up_micro, 90)
$$;

-- Adds a notice if a limit is used to this part; is_over: what is left is too little for a request.
CREATE FUNCTION note_limit(
    owner uuid, key uuid, what text, percent integer, used bigint, most bigint, period timestamptz, renews_at timestamptz, is_over boolean
) RETURNS void LANGUAGE sql SET search_path FROM CURRENT AS $$
    INSERT INTO threshold_notices (owner, subject, notice)
    SELECT note_limit.owner,
        -- With the limit, so that a raised one has its own thresholds.
        concat_ws('/', what, coalesce(key, note_limit.owner), extract(epoch FROM period), most, reached),
        jsonb_build_object('kind', 'limit', 'of', what, 'key', key, 'percent', reached, 'used', used, 'most', most, 'renewsAt', renews_at)
    FROM (SELECT CASE WHEN is_over OR used >= most THEN 100 ELSE percent END) AS threshold (reached)
    WHERE most > 0 AND used >= most * percent / 100
    ON CONFLICT DO NOTHING
$$;

CREATE FUNCTION note_budget(owner uuid, key uuid, used bigint, most bigint, since date, every text, is_over boolean) RETURNS void
LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT note_limit(
        owner, key, 'budget', 80, used, most, since AT TIME ZONE 'UTC', (since + ('1 ' || every)::interval) AT TIME ZONE 'UTC', is_over
    )
$$;

-- limited_by: what refused a request for a model of this weight, as reserve names it.
CREATE FUNCTION note_account(account accounts, limited_by text DEFAULT '', weight integer DEFAULT 0) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM note_limit(
        account.owner, NULL, 'allowance', 80, account.granted_tokens - account.allowance_tokens, account.granted_tokens, account.period_start,
        account.period_end, limited_by = 'account' AND weight > 0
    );
    PERFORM note_limit(
        account.owner, NULL, 'balance', 90, account.top_up_micro - account.balance_micro, account.top_up_micro, account.topped_up_at, NULL,
        limited_by = 'account'
    );
    PERFORM note_budget(
        account.owner, NULL, account.spent_micro, account.budget_micro, account.since, account.every, limited_by = 'owner'
    );
END
$$;

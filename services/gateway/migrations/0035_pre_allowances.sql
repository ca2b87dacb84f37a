-- A plan includes tokens, beside the balance in money; budgets may renew. Older gateways call the functions of 0002, 0027 and 0029.
SET LOCAL lock_timeout = '1s';

-- How many tokens of an allowance a token of the model uses; 0: the model is never covered.
ALTER TABLE prices ADD COLUMN allowance_weight smallint NOT NULL DEFAULT 1;

ALTER TABLE accounts
    -- The moment at which the periods of the account's plan begin: each lasts a month. Null before the account had one.
    ADD COLUMN anchor timestamptz,
    ADD COLUMN period_start timestamptz,
    ADD COLUMN period_end timestamptz,
    -- What is left of this period's tokens (below zero where they are unlimited), how many were granted, and what open reservations hold.
    ADD COLUMN allowance_tokens bigint NOT NULL DEFAULT 0,
    ADD COLUMN granted_tokens bigint NOT NULL DEFAULT 0,
    ADD COLUMN held_tokens bigint NOT NULL DEFAULT 0,
    -- Money spent, for the owner's budget: since the beginning, or since the budget was renewed.
    ADD COLUMN spent_micro bigint NOT NULL DEFAULT 0,
    ADD COLUMN every varchar(5),
    ADD COLUMN since date NOT NULL DEFAULT '0001-01-01',
    -- The budget when something was reserved last; null without one.
    ADD COLUMN budget_micro bigint,
    -- The last time that somebody added credits; null before.
    ADD COLUMN top_up_micro bigint,
    ADD COLUMN topped_up_at timestamptz;
ALTER TABLE key_spending
    ADD COLUMN every varchar(5), ADD COLUMN since date NOT NULL DEFAULT '0001-01-01', ADD COLUMN budget_micro bigint;
ALTER TABLE reservations ADD COLUMN held_tokens bigint NOT NULL DEFAULT 0, ADD COLUMN covered_tokens bigint NOT NULL DEFAULT 0;
ALTER TABLE ledger_balances ADD COLUMN allowance_tokens bigint NOT NULL DEFAULT 0;

-- An entry moves money or tokens. 'allowance' is the owner's; 'served' and 'billed' are the house's side.
ALTER TABLE entries
    ADD COLUMN amount_tokens bigint,
    ADD COLUMN period timestamptz,
    ALTER COLUMN amount_micro DROP NOT NULL,
    DROP CONSTRAINT entries_kind_check,
    DROP CONSTRAINT entries_account_check;
ALTER TABLE entries
    ADD CONSTRAINT entries_kind_check CHECK (kind IN ('usage', 'grant', 'expiry', 'top_up', 'reversal', 'invoice')) NOT VALID,
    ADD CONSTRAINT entries_account_check CHECK (
        CASE WHEN amount_micro IS NULL THEN account IN ('allowance', 'grants', 'served')
        ELSE amount_tokens IS NULL AND account IN ('included', 'balance', 'revenue', 'grants', 'payments', 'billed') END
    ) NOT VALID;

-- Plans included credits, which nobody meant as money. Tokens take their place.
UPDATE config_versions SET body = body - 'credits' WHERE kind = 'plan' AND body ? 'credits';

-- When a budget was renewed last; the beginning of time for one that isn't.
CREATE FUNCTION budget_since(every text) RETURNS date LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN every IS NULL THEN date '0001-01-01' ELSE date_trunc(every, now() AT TIME ZONE 'UTC')::date END
$$;

-- What tokens cost that an allowance doesn't cover: it covers the prompt first.
CREATE FUNCTION rest_micro(prompt bigint, completion bigint, covered bigint, input_per_million bigint, output_per_million bigint)
RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ceil((
        greatest(prompt - covered, 0)::numeric * input_per_million
        + (completion - greatest(covered - prompt, 0))::numeric * output_per_million
    ) / 1000000)::bigint
$$;

-- What accounts owed at the end of a period, until an invoice or a provider's meter has it. The id is the transfer's.
CREATE TABLE owed (
    id uuid PRIMARY KEY,
    owner uuid NOT NULL,
    micro bigint NOT NULL,
    period_start timestamptz NOT NULL,
    at timestamptz NOT NULL
);
CREATE INDEX owed_by_time ON owed (at);
ALTER TABLE owed ENABLE ROW LEVEL SECURITY;
ALTER TABLE owed FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON owed USING (sees(owner));

-- Ends the period of a locked account if it is over, and the first time: unused tokens are lost, and what the balance owes is billed. Before
-- its first period, an account has spent without owing it.
CREATE FUNCTION end_period(account accounts, moment timestamptz) RETURNS accounts
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    transfer uuid := gen_random_uuid();
    begun timestamp;
    months integer;
BEGIN
    IF account.period_end > moment THEN
        RETURN account;
    END IF;
    IF account.balance_micro < 0 AND account.anchor IS NOT NULL THEN
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

-- An owner's account, locked. With a plan, it has the tokens of this period; included_tokens NULL: as many as it needs. Whoever changes an
-- account or what hangs on it calls this first: that lock is what makes sums exact.
CREATE FUNCTION open_account(the_owner uuid, included_tokens bigint, has_plan boolean) RETURNS accounts
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
        WITH transfer AS (SELECT gen_random_uuid() AS id)
        INSERT INTO entries (transfer, kind, account, owner, amount_tokens, period, at)
        SELECT id, 'grant', side.account, the_owner, side.tokens, account.period_start, moment
        FROM transfer, LATERAL (VALUES ('allowance', more), ('grants', -more)) AS side (account, tokens);
        UPDATE accounts SET allowance_tokens = allowance_tokens + more, granted_tokens = granted_tokens + more
        WHERE owner = the_owner RETURNING * INTO account;
    END IF;
    RETURN account;
END
$$;

-- How many tokens of a model an account's plan can still cover.
CREATE FUNCTION covered_room(account accounts, included_tokens bigint, has_plan boolean, weight integer) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN NOT has_plan OR weight = 0 THEN 0
        WHEN included_tokens IS NULL THEN 1::bigint << 40
        ELSE greatest(account.allowance_tokens - account.held_tokens, 0) / weight END
$$;

-- Holds what a request may cost at most: tokens of the plan first, and money for the rest. Where that is more than there is, fewer tokens of
-- output are granted; where it is not enough for the least of them, nothing is held and granted_tokens is NULL. The same request a second
-- time changes nothing. overage_micro: how far the balance may fall below zero; NULL: as far as it does.
CREATE FUNCTION reserve(
    the_request uuid, the_owner uuid, the_key uuid, the_model text, the_price bigint, the_gateway text, lease_seconds double precision,
    the_prompt_tokens integer, wanted_tokens integer, least_tokens integer, answers integer,
    fixed_micro bigint, input_per_million bigint, output_per_million bigint, weight integer,
    included_tokens bigint, overage_micro bigint, has_plan boolean, key_budget bigint, key_every text, owner_budget bigint, owner_every text,
    OUT granted_tokens integer, OUT held_tokens bigint, OUT room_micro bigint, OUT limited_by text, OUT is_repeated boolean
) LANGUAGE plpgsql SET search_path FROM CURRENT SET plan_cache_mode TO force_generic_plan AS $$
DECLARE
    account accounts;
    of_key bigint;
    of_owner bigint;
    coverable bigint;
    covered bigint;
    held bigint;
    millionths numeric;
BEGIN
    account := open_account(the_owner, included_tokens, has_plan);
    -- Under the lock, so that of two at once one sees the other's.
    SELECT completion_tokens / answers, reservations.held_tokens INTO granted_tokens, held_tokens
    FROM reservations WHERE request_id = the_request;
    is_repeated := FOUND;
    IF is_repeated THEN
        RETURN;
    END IF;
    room_micro := account.balance_micro + overage_micro - account.reserved_micro;
    limited_by := 'account';
    IF owner_budget IS NOT NULL THEN
        IF (account.every, account.since) IS DISTINCT FROM (owner_every, budget_since(owner_every)) THEN
            UPDATE accounts SET every = owner_every, since = budget_since(owner_every), spent_micro = CASE WHEN owner_every IS NULL THEN spent_micro ELSE 0 END
            WHERE owner = the_owner RETURNING * INTO account;
        END IF;
        of_owner := owner_budget - account.spent_micro - account.reserved_micro;
        IF room_micro IS NULL OR of_owner < room_micro THEN
            room_micro := of_owner;
            limited_by := 'owner';
        END IF;
    END IF;
    IF key_budget IS NOT NULL THEN
        UPDATE key_spending SET every = key_every, since = budget_since(key_every), spent_micro = CASE WHEN key_every IS NULL THEN spent_micro ELSE 0 END
        WHERE key_id = the_key AND (every, since) IS DISTINCT FROM (key_every, budget_since(key_every));
        SELECT key_budget - spent_micro - reserved_micro INTO of_key FROM key_spending WHERE key_id = the_key;
        of_key := coalesce(of_key, key_budget);
        IF room_micro IS NULL OR of_key < room_micro THEN
            room_micro := of_key;
            limited_by := 'key';
        END IF;
    END IF;
    -- Who owes something may still use tokens of the plan. Passes NULLs over.
    room_micro := CASE WHEN room_micro < 0 THEN 0 ELSE room_micro END;
    granted_tokens := wanted_tokens;
    coverable := covered_room(account, included_tokens, has_plan, weight);
    covered := least(the_prompt_tokens + wanted_tokens::bigint * answers, coverable);
    held := fixed_micro + rest_micro(the_prompt_tokens, wanted_tokens::bigint * answers, covered, input_per_million, output_per_million);
    IF held > room_micro THEN
        millionths := (room_micro - fixed_micro)::numeric * 1000000 - greatest(the_prompt_tokens - coverable, 0)::numeric * input_per_million;
        granted_tokens := CASE WHEN millionths >= 0 AND output_per_million > 0 THEN
            floor((greatest(coverable - the_prompt_tokens, 0) + floor(millionths / output_per_million)) / answers) ELSE -1 END;
        IF granted_tokens < least(least_tokens, wanted_tokens) THEN
            granted_tokens := NULL;
            account.budget_micro := owner_budget;
            PERFORM note_account(account, limited_by, weight);
            PERFORM note_budget(owner, key_id, spent_micro, key_budget, since, every, true)
            FROM key_spending WHERE key_id = the_key AND limited_by = 'key';
            RETURN;
        END IF;
        covered := least(the_prompt_tokens + granted_tokens::bigint * answers, coverable);
        held := fixed_micro + rest_micro(the_prompt_tokens, granted_tokens::bigint * answers, covered, input_per_million, output_per_million);
    END IF;
    held_tokens := covered * weight;
    INSERT INTO reservations (
        request_id, owner, key_id, model, price_id, reserved_micro, held_tokens, prompt_tokens, completion_tokens, gateway, lease_until
    ) VALUES (
        the_request, the_owner, the_key, the_model, the_price, held, reserve.held_tokens, the_prompt_tokens, granted_tokens * answers, the_gateway,
        now() + make_interval(secs => lease_seconds)
    );
    IF held > 0 OR held_tokens > 0 THEN
        UPDATE accounts
        SET reserved_micro = reserved_micro + held, held_tokens = accounts.held_tokens + reserve.held_tokens, budget_micro = owner_budget
        WHERE owner = the_owner;
        IF the_key IS NOT NULL THEN
            INSERT INTO key_spending (key_id, owner, reserved_micro, every, since, budget_micro)
            VALUES (the_key, the_owner, held, key_every, budget_since(key_every), key_budget)
            ON CONFLICT (key_id) DO UPDATE SET reserved_micro = key_spending.reserved_micro + held, budget_micro = excluded.budget_micro;
        END IF;
    END IF;
END
$$;

-- Raises an open reservation to wanted_tokens for each answer, or to as many as the plan and the credits cover. Returns what it then holds: for
-- each answer, and of the plan; NULL if it is not open. A smaller raise than least_more changes nothing, and so does the same raise again.
CREATE FUNCTION extend_hold(
    the_request uuid, wanted_tokens integer, least_more integer, answers integer, input_per_million bigint, output_per_million bigint,
    weight integer, included_tokens bigint, overage_micro bigint, has_plan boolean, key_budget bigint, owner_budget bigint,
    OUT granted_tokens integer, OUT held_tokens bigint
) LANGUAGE plpgsql SET search_path FROM CURRENT SET plan_cache_mode TO force_generic_plan AS $$
DECLARE
    held reservations;
    account accounts;
    room bigint;
    coverable bigint;
    covered bigint;
    before bigint;
    wanted bigint := wanted_tokens::bigint * answers;
    more_micro bigint;
BEGIN
    SELECT * INTO held FROM reservations WHERE request_id = the_request AND state = 'reserved';
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- The account first, as everywhere, and then the reservation again: it may have ended meanwhile.
    account := open_account(held.owner, included_tokens, has_plan);
    SELECT * INTO held FROM reservations WHERE request_id = the_request AND state = 'reserved' FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    granted_tokens := held.completion_tokens / answers;
    held_tokens := held.held_tokens;
    room := account.balance_micro + overage_micro - account.reserved_micro;
    IF owner_budget IS NOT NULL THEN
        room := least(room, owner_budget - account.spent_micro - account.reserved_micro);
    END IF;
    IF key_budget IS NOT NULL THEN
        room := least(room, key_budget - coalesce((SELECT spent_micro + reserved_micro FROM key_spending WHERE key_id = held.key_id), 0));
    END IF;
    room := CASE WHEN room < 0 THEN 0 ELSE room END;
    covered := least(held.held_tokens / greatest(weight, 1), held.prompt_tokens + held.completion_tokens) * sign(weight);
    before := rest_micro(held.prompt_tokens, held.completion_tokens, covered, input_per_million, output_per_million);
    coverable := covered + covered_room(account, included_tokens, has_plan, weight);
    IF rest_micro(held.prompt_tokens, wanted, least(held.prompt_tokens + wanted, coverable), input_per_million, output_per_million) - before > room THEN
        wanted := greatest(coverable - held.prompt_tokens, 0) + floor((
            (before + room)::numeric * 1000000 - greatest(held.prompt_tokens - coverable, 0)::numeric * input_per_million
        ) / output_per_million);
    END IF;
    wanted := wanted / answers * answers;
    IF wanted - held.completion_tokens < greatest(least_more, 1)::bigint * answers THEN
        RETURN;
    END IF;
    covered := greatest(least(held.prompt_tokens + wanted, coverable), covered);
    more_micro := greatest(rest_micro(held.prompt_tokens, wanted, covered, input_per_million, output_per_million) - before, 0);
    granted_tokens := wanted / answers;
    held_tokens := greatest(covered * weight, held.held_tokens);
    UPDATE reservations
    SET reserved_micro = reserved_micro + more_micro, completion_tokens = wanted, held_tokens = extend_hold.held_tokens
    WHERE request_id = the_request;
    UPDATE accounts
    SET reserved_micro = reserved_micro + more_micro, held_tokens = accounts.held_tokens + extend_hold.held_tokens - held.held_tokens
    WHERE owner = held.owner;
    IF more_micro > 0 THEN
        UPDATE key_spending SET reserved_micro = reserved_micro + more_micro WHERE key_id = held.key_id;
    END IF;
END
$$;

-- Ends a reservation with what the request cost and how many tokens of the plan it used, but never more than was held; NULL where it is not
-- open (any more).
CREATE FUNCTION settle(the_request uuid, cost_micro bigint, the_covered_tokens bigint, the_state text) RETURNS bigint
LANGUAGE plpgsql SET search_path FROM CURRENT SET plan_cache_mode TO force_generic_plan AS $$
DECLARE
    held reservations;
    account accounts;
    of_key key_spending;
    moment timestamptz;
BEGIN
    SELECT * INTO held FROM reservations WHERE request_id = the_request AND state = 'reserved';
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT * INTO account FROM accounts WHERE owner = held.owner FOR UPDATE;
    moment := clock_timestamp();
    UPDATE reservations
    SET state = the_state, settled_micro = greatest(0, least(cost_micro, reserved_micro)),
        covered_tokens = greatest(0, least(the_covered_tokens, held_tokens)), ended_at = now()
    WHERE request_id = the_request AND state = 'reserved' RETURNING * INTO held;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF account.period_end <= moment THEN
        account := end_period(account, moment);
    END IF;
    IF held.reserved_micro = 0 AND held.held_tokens = 0 THEN
        RETURN 0;
    END IF;
    UPDATE accounts
    SET reserved_micro = reserved_micro - held.reserved_micro, balance_micro = balance_micro - held.settled_micro,
        held_tokens = held_tokens - held.held_tokens, allowance_tokens = allowance_tokens - held.covered_tokens,
        spent_micro = CASE WHEN since < budget_since(every) THEN 0 ELSE spent_micro END + held.settled_micro,
        since = budget_since(every)
    WHERE owner = held.owner RETURNING * INTO account;
    UPDATE key_spending
    SET reserved_micro = reserved_micro - held.reserved_micro,
        spent_micro = CASE WHEN since < budget_since(every) THEN 0 ELSE spent_micro END + held.settled_micro, since = budget_since(every)
    WHERE key_id = held.key_id AND held.reserved_micro > 0 RETURNING * INTO of_key;
    IF is_crossed(account, held.settled_micro, held.covered_tokens) THEN
        PERFORM note_account(account);
    END IF;
    IF crosses(of_key.spent_micro - held.settled_micro, of_key.spent_micro, of_key.budget_micro, 80) THEN
        PERFORM note_budget(of_key.owner, of_key.key_id, of_key.spent_micro, of_key.budget_micro, of_key.since, of_key.every, false);
    END IF;
    INSERT INTO entries (transfer, kind, account, owner, amount_micro, amount_tokens, period, at)
    SELECT the_request, 'usage', side.account, held.owner, side.micro, side.tokens, account.period_start, moment
    FROM (VALUES
        ('balance', -held.settled_micro, NULL), ('revenue', held.settled_micro, NULL),
        ('allowance', NULL, -held.covered_tokens), ('served', NULL, held.covered_tokens)
    ) AS side (account, micro, tokens)
    WHERE coalesce(side.micro, side.tokens) <> 0;
    RETURN held.settled_micro;
END
$$;

-- As in 0027, for older gateways, which don't know about tokens.
CREATE OR REPLACE FUNCTION settle(the_request uuid, cost_micro bigint, the_state text) RETURNS bigint
LANGUAGE sql SET search_path FROM CURRENT AS $$ SELECT settle(the_request, cost_micro, 0, the_state) $$;

-- Moves credits between an owner's balance and the house's payments. The same transfer a second time is a unique violation.
CREATE FUNCTION top_up(the_transfer uuid, the_owner uuid, amount bigint, the_note text, included_tokens bigint, has_plan boolean) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM open_account(the_owner, included_tokens, has_plan);
    INSERT INTO entries (transfer, kind, account, owner, amount_micro, note, at)
    VALUES (the_transfer, 'top_up', 'balance', the_owner, amount, the_note, clock_timestamp()),
           (the_transfer, 'top_up', 'payments', the_owner, -amount, the_note, clock_timestamp());
    UPDATE accounts
    SET balance_micro = balance_micro + amount, top_up_micro = CASE WHEN amount > 0 THEN amount ELSE top_up_micro END,
        topped_up_at = CASE WHEN amount > 0 THEN clock_timestamp() ELSE topped_up_at END
    WHERE owner = the_owner;
END
$$;

-- Gives back what a request cost: money to the balance, and tokens while their period lasts. NULL where there is nothing to give back; a
-- second time is a unique violation.
CREATE OR REPLACE FUNCTION revert(the_request uuid, the_note text) RETURNS uuid
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    held reservations;
    account accounts;
    tokens bigint;
BEGIN
    SELECT * INTO held FROM reservations
    WHERE request_id = the_request AND state <> 'reserved' AND (settled_micro > 0 OR covered_tokens > 0);
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    account := open_account(held.owner, 0, false);
    tokens := CASE WHEN held.ended_at >= account.period_start AND account.period_end > clock_timestamp() THEN held.covered_tokens ELSE 0 END;
    IF held.settled_micro = 0 AND tokens = 0 THEN
        RETURN NULL;
    END IF;
    INSERT INTO entries (transfer, kind, account, owner, amount_micro, amount_tokens, period, note, at)
    SELECT the_request, 'reversal', side.account, held.owner, side.micro, side.tokens, account.period_start, the_note, clock_timestamp()
    FROM (VALUES
        ('balance', held.settled_micro, NULL), ('revenue', -held.settled_micro, NULL), ('allowance', NULL, tokens), ('served', NULL, -tokens)
    ) AS side (account, micro, tokens)
    WHERE coalesce(side.micro, side.tokens) <> 0;
    UPDATE accounts
    SET balance_micro = balance_micro + held.settled_micro, allowance_tokens = allowance_tokens + tokens,
        spent_micro = greatest(0, spent_micro - held.settled_micro * (held.ended_at AT TIME ZONE 'UTC' >= since)::integer)
    WHERE owner = held.owner;
    UPDATE key_spending SET spent_micro = greatest(0, spent_micro - held.settled_micro * (held.ended_at AT TIME ZONE 'UTC' >= since)::integer)
    WHERE key_id = held.key_id;
    RETURN held.owner;
END
$$;

-- In both functions, `= ANY` of keys keeps each table to an index, also with a plan that was made when the table was small.

-- Reserves requests as `reserve` does for each in turn, by owner and id; a granted request may have no room_micro. In one go if all certainly
-- fit in full, and each owner's are covered by the plan or none of them is.
CREATE FUNCTION reserve_batch(
    requests uuid[], owners uuid[], keys uuid[], models text[], price_ids bigint[], prompt_tokens integer[], wanted_tokens integer[],
    least_tokens integer[], answers integer[], fixed_micros bigint[], inputs_per_million bigint[], outputs_per_million bigint[],
    weights integer[], included_tokens bigint[], overage_micros bigint[], have_plans boolean[], key_budgets bigint[], keys_every text[],
    owner_budgets bigint[], owners_every text[], the_gateway text, lease_seconds double precision
) RETURNS TABLE (
    request_id uuid, granted_tokens integer, held_tokens bigint, room_micro bigint, limited_by text, is_repeated boolean
)
LANGUAGE plpgsql SET search_path FROM CURRENT SET plan_cache_mode TO force_generic_plan SET enable_seqscan TO off AS $$
#variable_conflict use_column
DECLARE
    all_fit boolean := false;
    covered uuid[];
    granted uuid[];
BEGIN
    IF cardinality(requests) > 1 THEN
        -- Lock all accounts in the order of the loop. If one is missing, lock none: another gateway may insert it and wait for a later one.
        WITH wanted AS MATERIALIZED (
            SELECT owner, min(included) AS included, bool_or(included IS NULL) AS is_unlimited, min(overage) AS overage, bool_or(has_plan) AS has_plan,
                min(budget) AS budget, min(every) AS every,
                sum((prompt + tokens::bigint * answers) * weight) AS tokens,
                sum(fixed) AS fixed,
                sum(fixed + rest_micro(prompt, tokens::bigint * answers, 0, input, output)) AS micro,
                sum(CASE WHEN weight = 0 THEN fixed + rest_micro(prompt, tokens::bigint * answers, 0, input, output) ELSE fixed END) AS rest
            FROM unnest(
                owners, prompt_tokens, wanted_tokens, answers, fixed_micros, inputs_per_million, outputs_per_million, weights, included_tokens,
                overage_micros, have_plans, owner_budgets, owners_every
            ) AS given (owner, prompt, tokens, answers, fixed, input, output, weight, included, overage, has_plan, budget, every)
            GROUP BY owner
        ),
        locked AS MATERIALIZED (
            SELECT * FROM accounts
            WHERE owner = ANY (owners) AND (SELECT count(*) FROM wanted) = (SELECT count(*) FROM accounts WHERE owner = ANY (owners))
            ORDER BY owner FOR UPDATE
        ),
        judged AS (
            SELECT owner, has_plan AND (is_unlimited OR tokens <= allowance_tokens - held_tokens) AS is_covered,
                (NOT has_plan OR period_end > clock_timestamp() AND (is_unlimited OR granted_tokens >= included))
                AND (budget IS NULL OR (locked.every, since) IS NOT DISTINCT FROM (wanted.every, budget_since(wanted.every))) AS is_current,
                has_plan AND NOT is_unlimited AND allowance_tokens > held_tokens AS has_some,
                least(balance_micro + overage, budget - spent_micro) - reserved_micro AS room, micro, rest
            FROM locked JOIN wanted USING (owner)
        )
        SELECT (SELECT count(DISTINCT id) FROM unnest(requests) AS id) = cardinality(requests) AND bool_and(
            is_current AND CASE WHEN is_covered THEN (rest <= room) IS NOT FALSE ELSE NOT has_some AND (micro <= room) IS NOT FALSE END
        ), array_agg(owner) FILTER (WHERE is_covered) INTO all_fit, covered
        FROM judged;
    END IF;
    -- In a statement after the lock, to see what others have reserved.
    IF all_fit AND array_remove(key_budgets, NULL) <> '{}' THEN
        SELECT bool_and(
            micro <= budget - coalesce(spent_micro + reserved_micro, 0)
            AND (key_spending.key_id IS NULL OR (key_spending.every, since) IS NOT DISTINCT FROM (wanted.every, budget_since(wanted.every)))
        ) INTO all_fit
        FROM (
            SELECT key_id, sum(fixed + rest_micro(prompt, tokens::bigint * answers, 0, input, output)) AS micro, min(budget) AS budget, min(every) AS every
            FROM unnest(keys, prompt_tokens, wanted_tokens, answers, fixed_micros, inputs_per_million, outputs_per_million, key_budgets, keys_every)
                AS given (key_id, prompt, tokens, answers, fixed, input, output, budget, every)
            GROUP BY key_id HAVING min(budget) IS NOT NULL
        ) AS wanted LEFT JOIN key_spending ON key_spending.key_id = wanted.key_id AND key_spending.key_id = ANY (keys);
    END IF;
    IF all_fit THEN
        WITH fresh AS (
            INSERT INTO reservations (
                request_id, owner, key_id, model, price_id, reserved_micro, held_tokens, prompt_tokens, completion_tokens, gateway, lease_until
            )
            SELECT request, owner, key_id, model, price_id,
                fixed + CASE WHEN weight > 0 AND owner = ANY (covered) THEN 0 ELSE rest_micro(prompt, tokens::bigint * answers, 0, input, output) END,
                CASE WHEN owner = ANY (covered) THEN (prompt + tokens::bigint * answers) * weight ELSE 0 END,
                prompt, tokens * answers, the_gateway, now() + make_interval(secs => lease_seconds)
            FROM unnest(
                requests, owners, keys, models, price_ids, prompt_tokens, wanted_tokens, answers, fixed_micros, inputs_per_million, outputs_per_million, weights
            ) AS given (request, owner, key_id, model, price_id, prompt, tokens, answers, fixed, input, output, weight)
            ON CONFLICT DO NOTHING RETURNING request_id, owner, key_id, reserved_micro, held_tokens
        ),
        of_accounts AS (
            UPDATE accounts
            SET reserved_micro = accounts.reserved_micro + held.micro, held_tokens = accounts.held_tokens + held.tokens, budget_micro = held.budget
            FROM (
                -- The budgets are of the last request that held something.
                SELECT owner, sum(reserved_micro) AS micro, sum(held_tokens) AS tokens,
                    (array_agg(budget ORDER BY request_id DESC) FILTER (WHERE reserved_micro + held_tokens > 0))[1] AS budget
                FROM fresh JOIN unnest(requests, owner_budgets) AS given (request, budget) ON request = request_id GROUP BY owner
            ) AS held
            WHERE accounts.owner = held.owner AND accounts.owner = ANY (owners) AND held.micro + held.tokens > 0
        ),
        of_keys AS (
            INSERT INTO key_spending (key_id, owner, reserved_micro, every, since, budget_micro)
            SELECT key_id, (array_agg(owner))[1], sum(reserved_micro), min(given.every), budget_since(min(given.every)),
                (array_agg(budget ORDER BY request_id DESC))[1]
            FROM fresh JOIN unnest(requests, key_budgets, keys_every) AS given (request, budget, every) ON request = request_id
            WHERE reserved_micro + held_tokens > 0 AND key_id IS NOT NULL GROUP BY key_id
            ON CONFLICT (key_id) DO UPDATE
            SET reserved_micro = key_spending.reserved_micro + excluded.reserved_micro, budget_micro = excluded.budget_micro
        )
        SELECT array_agg(request_id) INTO granted FROM fresh;
        RETURN QUERY
        SELECT request, tokens, CASE WHEN owner = ANY (covered) THEN (prompt + tokens::bigint * answers) * weight ELSE 0 END, NULL::bigint, NULL::text, false
        FROM unnest(requests, owners, prompt_tokens, wanted_tokens, answers, weights) AS given (request, owner, prompt, tokens, answers, weight)
        WHERE request = ANY (granted);
        IF cardinality(granted) = cardinality(requests) THEN
            RETURN;
        END IF;
    END IF;
    -- Also repeated ones of a batch that fits.
    RETURN QUERY
    SELECT request, held.*
    FROM (
        SELECT * FROM unnest(
            requests, owners, keys, models, price_ids, prompt_tokens, wanted_tokens, least_tokens, answers, fixed_micros, inputs_per_million,
            outputs_per_million, weights, included_tokens, overage_micros, have_plans, key_budgets, keys_every, owner_budgets, owners_every
        ) WITH ORDINALITY AS given (
            request, owner, key_id, model, price_id, prompt, tokens, least, answers, fixed, input, output, weight, included, overage, has_plan,
            key_budget, key_every, owner_budget, owner_every, number
        )
        WHERE request = ANY (granted) IS NOT TRUE
        ORDER BY owner, request, number
    ) AS given, LATERAL reserve(
        request, owner, key_id, model, price_id, the_gateway, lease_seconds, prompt, tokens, least, given.answers, fixed, input, output, weight,
        included, overage, has_plan, key_budget, key_every, owner_budget, owner_every
    ) AS held;
END
$$;

-- Settles requests as `settle` does for each in turn, by owner and id. Returns what each cost, in the order given.
CREATE FUNCTION settle_batch(requests uuid[], cost_micros bigint[], tokens_covered bigint[], states text[]) RETURNS bigint[]
LANGUAGE plpgsql SET search_path FROM CURRENT SET plan_cache_mode TO force_generic_plan SET enable_seqscan TO off AS $$
DECLARE
    -- Ids begin with their time, so that a batch is in one or two partitions.
    first_id uuid;
    last_id uuid;
    owners uuid[];
    keys uuid[];
    costs bigint[];
    moment timestamptz;
BEGIN
    IF cardinality(requests) = 1 THEN
        RETURN ARRAY[settle(requests[1], cost_micros[1], tokens_covered[1], states[1])];
    END IF;
    SELECT ids[1], ids[cardinality(ids)] INTO first_id, last_id FROM (SELECT array_agg(id ORDER BY id) AS ids FROM unnest(requests) AS id) AS given;
    SELECT array_agg(DISTINCT owner), array_agg(DISTINCT key_id) INTO owners, keys
    FROM reservations WHERE request_id = ANY (requests) AND request_id BETWEEN first_id AND last_id AND state = 'reserved';
    PERFORM FROM accounts WHERE owner = ANY (owners) ORDER BY owner FOR UPDATE;
    moment := clock_timestamp();
    PERFORM end_period(accounts, moment) FROM accounts WHERE owner = ANY (owners) AND period_end <= moment;
    WITH given AS MATERIALIZED (
        SELECT DISTINCT ON (id) * FROM unnest(requests, cost_micros, tokens_covered, states) WITH ORDINALITY AS one (id, cost_micro, tokens, state, number)
        ORDER BY id, number
    ),
    ended AS MATERIALIZED (
        -- Of these owners alone: others may have reserved during the wait for the locks.
        UPDATE reservations
        SET state = given.state, settled_micro = greatest(0, least(given.cost_micro, reserved_micro)),
            covered_tokens = greatest(0, least(given.tokens, held_tokens)), ended_at = now()
        FROM given
        WHERE request_id = given.id AND request_id = ANY (requests) AND request_id BETWEEN first_id AND last_id
            AND reservations.state = 'reserved' AND owner = ANY (owners)
        RETURNING request_id, owner, key_id, reserved_micro, held_tokens, settled_micro, covered_tokens, number
    ),
    of_accounts AS (
        UPDATE accounts
        SET reserved_micro = accounts.reserved_micro - total.reserved, balance_micro = balance_micro - total.settled,
            held_tokens = accounts.held_tokens - total.held, allowance_tokens = allowance_tokens - total.covered,
            spent_micro = CASE WHEN since < budget_since(every) THEN 0 ELSE spent_micro END + total.settled, since = budget_since(every)
        FROM (
            SELECT owner, sum(reserved_micro) AS reserved, sum(settled_micro) AS settled, sum(held_tokens) AS held, sum(covered_tokens) AS covered
            FROM ended GROUP BY owner
        ) AS total
        WHERE accounts.owner = total.owner AND accounts.owner = ANY (owners) AND total.reserved + total.held > 0
        RETURNING accounts.owner, is_crossed(accounts, total.settled::bigint, total.covered::bigint)
    ),
    of_keys AS (
        UPDATE key_spending
        SET reserved_micro = key_spending.reserved_micro - total.reserved,
            spent_micro = CASE WHEN since < budget_since(every) THEN 0 ELSE spent_micro END + total.settled, since = budget_since(every)
        FROM (SELECT key_id, sum(reserved_micro) AS reserved, sum(settled_micro) AS settled FROM ended GROUP BY key_id) AS total
        WHERE key_spending.key_id = total.key_id AND key_spending.key_id = ANY (keys) AND total.reserved > 0
        RETURNING key_spending.key_id, crosses(spent_micro - total.settled::bigint, spent_micro, budget_micro, 80) AS is_crossed
    ),
    booked AS (
        INSERT INTO entries (transfer, kind, account, owner, amount_micro, amount_tokens, period, at)
        SELECT request_id, 'usage', side.account, owner, side.micro, side.tokens, period_start, moment
        FROM ended JOIN accounts USING (owner), LATERAL (VALUES
            ('balance', -settled_micro, NULL), ('revenue', settled_micro, NULL), ('allowance', NULL, -covered_tokens), ('served', NULL, covered_tokens)
        ) AS side (account, micro, tokens)
        WHERE accounts.owner = ANY (owners) AND coalesce(side.micro, side.tokens) <> 0
    )
    SELECT array_agg(settled_micro ORDER BY place.number),
        ARRAY(SELECT owner FROM of_accounts WHERE is_crossed), ARRAY(SELECT key_id FROM of_keys WHERE is_crossed)
    INTO costs, owners, keys
    FROM generate_series(1, cardinality(requests)) AS place (number) LEFT JOIN ended USING (number);
    IF owners <> '{}' OR keys <> '{}' THEN
        PERFORM note_account(accounts) FROM accounts WHERE owner = ANY (owners);
        PERFORM note_budget(owner, key_id, spent_micro, budget_micro, since, every, false) FROM key_spending WHERE key_id = ANY (keys);
    END IF;
    RETURN costs;
END
$$;

-- As in 0029, for older gateways.
CREATE OR REPLACE FUNCTION settle_batch(requests uuid[], cost_micros bigint[], states text[]) RETURNS bigint[]
LANGUAGE sql SET search_path FROM CURRENT AS $$ SELECT settle_batch(requests, cost_micros, array_fill(0::bigint, ARRAY[cardinality(requests)]), states) $$;

-- As in 0024, with tokens.
CREATE OR REPLACE FUNCTION release_what_was_taken_over() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF settle(OLD.request_id, 0, 0, 'expired') IS NOT NULL THEN
        PERFORM spend_targets(ARRAY[OLD.request_id], NULL, NULL, NULL, NULL);
    END IF;
    RETURN NULL;
END
$$;

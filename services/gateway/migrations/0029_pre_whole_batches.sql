-- Reserve and settle whole batches: one statement for each request cost more than the rows. Older gateways call `reserve` and `settle`.
SET LOCAL lock_timeout = '1s';

-- In both functions, `= ANY` of keys keeps each table to an index, also with a plan that was made when the table was small.

-- Reserves requests as `reserve` does for each in turn, by owner and id; a granted request may have no room_micro. In one go if all certainly
-- fit in full.
CREATE FUNCTION reserve_batch(
    requests uuid[], owners uuid[], keys uuid[], models text[], price_ids bigint[], prompt_tokens integer[], wanted_tokens integer[],
    least_tokens integer[], answers integer[], fixed_micros bigint[], micros_per_million bigint[], monthly_micros bigint[],
    are_bounded boolean[], key_budgets bigint[], the_gateway text, lease_seconds double precision
) RETURNS TABLE (request_id uuid, granted_tokens integer, room_micro bigint, key_is_tightest boolean, is_repeated boolean)
LANGUAGE plpgsql SET search_path FROM CURRENT SET plan_cache_mode TO force_generic_plan SET enable_seqscan TO off AS $$
#variable_conflict use_column
DECLARE
    all_fit boolean := false;
    granted uuid[];
BEGIN
    IF cardinality(requests) > 1 THEN
        -- Lock all accounts in the order of the loop. If one is missing, lock none: another gateway may insert it and wait for a later one.
        WITH wanted AS MATERIALIZED (
            SELECT owner, bool_or(is_bounded) AS is_bounded, max(monthly_micro) AS monthly_micro,
                sum(fixed_micro + ceil(tokens::numeric * answers * per_million / 1000000)) AS micro
            FROM unnest(owners, wanted_tokens, answers, fixed_micros, micros_per_million, monthly_micros, are_bounded)
                AS given (owner, tokens, answers, fixed_micro, per_million, monthly_micro, is_bounded)
            GROUP BY owner
        ),
        locked AS MATERIALIZED (
            SELECT * FROM accounts
            WHERE owner = ANY (owners) AND (SELECT count(*) FROM wanted) = (SELECT count(*) FROM accounts WHERE owner = ANY (owners))
            ORDER BY owner FOR UPDATE
        )
        SELECT (SELECT count(DISTINCT id) FROM unnest(requests) AS id) = cardinality(requests) AND bool_and(
            month >= date_trunc('month', now() AT TIME ZONE 'UTC')::date AND granted_micro >= coalesce(monthly_micro, 0)
            AND (NOT is_bounded OR micro <= included_micro + balance_micro - reserved_micro)
        ) INTO all_fit
        FROM locked JOIN wanted USING (owner);
    END IF;
    -- In a statement after the lock, to see what others have reserved.
    IF all_fit AND array_remove(key_budgets, NULL) <> '{}' THEN
        SELECT bool_and(micro <= budget - coalesce(spent_micro + reserved_micro, 0)) INTO all_fit
        FROM (
            SELECT key_id, sum(fixed_micro + ceil(tokens::numeric * answers * per_million / 1000000)) AS micro, min(budget) AS budget
            FROM unnest(keys, wanted_tokens, answers, fixed_micros, micros_per_million, key_budgets)
                AS given (key_id, tokens, answers, fixed_micro, per_million, budget)
            GROUP BY key_id HAVING min(budget) IS NOT NULL
        ) AS wanted LEFT JOIN key_spending ON key_spending.key_id = wanted.key_id AND key_spending.key_id = ANY (keys);
    END IF;
    IF all_fit THEN
        WITH fresh AS (
            INSERT INTO reservations (
                request_id, owner, key_id, model, price_id, reserved_micro, prompt_tokens, completion_tokens, gateway, lease_until
            )
            SELECT request, owner, key_id, model, price_id, fixed_micro + ceil(tokens::numeric * answers * per_million / 1000000), prompt_tokens,
                tokens * answers, the_gateway, now() + make_interval(secs => lease_seconds)
            FROM unnest(
                requests, owners, keys, models, price_ids, prompt_tokens, wanted_tokens, answers, fixed_micros, micros_per_million
            ) AS given (request, owner, key_id, model, price_id, prompt_tokens, tokens, answers, fixed_micro, per_million)
            ON CONFLICT DO NOTHING RETURNING request_id, owner, key_id, reserved_micro
        ),
        of_accounts AS (
            UPDATE accounts SET reserved_micro = accounts.reserved_micro + held.micro
            FROM (SELECT owner, sum(reserved_micro) AS micro FROM fresh GROUP BY owner) AS held
            WHERE accounts.owner = held.owner AND accounts.owner = ANY (owners) AND held.micro > 0
        ),
        of_keys AS (
            INSERT INTO key_spending (key_id, owner, reserved_micro)
            SELECT key_id, (array_agg(owner))[1], sum(reserved_micro) FROM fresh WHERE reserved_micro > 0 AND key_id IS NOT NULL GROUP BY key_id
            ON CONFLICT (key_id) DO UPDATE SET reserved_micro = key_spending.reserved_micro + excluded.reserved_micro
        )
        SELECT array_agg(request_id) INTO granted FROM fresh;
        RETURN QUERY
        SELECT request, tokens, NULL::bigint, false, false FROM unnest(requests, wanted_tokens) AS given (request, tokens)
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
            requests, owners, keys, models, price_ids, prompt_tokens, wanted_tokens, least_tokens, answers, fixed_micros, micros_per_million,
            monthly_micros, are_bounded, key_budgets
        ) WITH ORDINALITY AS given (
            request, owner, key_id, model, price_id, prompt_tokens, tokens, least, answers, fixed_micro, per_million, monthly_micro, is_bounded,
            key_budget, number
        )
        WHERE request = ANY (granted) IS NOT TRUE
        ORDER BY owner, request, number
    ) AS given, LATERAL reserve(
        request, owner, key_id, model, price_id, the_gateway, lease_seconds, given.prompt_tokens, tokens, least, given.answers, fixed_micro,
        per_million, monthly_micro, is_bounded, key_budget
    ) AS held;
END
$$;

-- Settles requests as `settle` does for each in turn, by owner and id. Returns what each cost, in the order given.
CREATE FUNCTION settle_batch(requests uuid[], cost_micros bigint[], states text[]) RETURNS bigint[]
LANGUAGE plpgsql SET search_path FROM CURRENT SET plan_cache_mode TO force_generic_plan SET enable_seqscan TO off AS $$
DECLARE
    -- Ids begin with their time, so that a batch is in one or two partitions.
    first_id uuid;
    last_id uuid;
    owners uuid[];
    keys uuid[];
    costs bigint[];
BEGIN
    IF cardinality(requests) = 1 THEN
        RETURN ARRAY[settle(requests[1], cost_micros[1], states[1])];
    END IF;
    SELECT ids[1], ids[cardinality(ids)] INTO first_id, last_id FROM (SELECT array_agg(id ORDER BY id) AS ids FROM unnest(requests) AS id) AS given;
    SELECT array_agg(DISTINCT owner), array_agg(DISTINCT key_id) INTO owners, keys
    FROM reservations WHERE request_id = ANY (requests) AND request_id BETWEEN first_id AND last_id AND state = 'reserved';
    PERFORM FROM accounts WHERE owner = ANY (owners) ORDER BY owner FOR UPDATE;
    WITH given AS MATERIALIZED (
        SELECT DISTINCT ON (id) * FROM unnest(requests, cost_micros, states) WITH ORDINALITY AS one (id, cost_micro, state, number)
        ORDER BY id, number
    ),
    ended AS (
        -- Of these owners alone: others may have reserved during the wait for the locks.
        UPDATE reservations SET state = given.state, settled_micro = greatest(0, least(given.cost_micro, reserved_micro)), ended_at = now()
        FROM given
        WHERE request_id = given.id AND request_id = ANY (requests) AND request_id BETWEEN first_id AND last_id
            AND reservations.state = 'reserved' AND owner = ANY (owners)
        RETURNING request_id, owner, key_id, reserved_micro, settled_micro, number
    ),
    parts AS MATERIALIZED (
        -- Included credits first, by one request after the other.
        SELECT ended.*, least(settled_micro, greatest(0, included_micro - (
            sum(settled_micro) OVER (PARTITION BY owner ORDER BY request_id) - settled_micro
        )))::bigint AS of_included
        FROM ended JOIN accounts USING (owner) WHERE owner = ANY (owners)
    ),
    of_accounts AS (
        UPDATE accounts
        SET reserved_micro = accounts.reserved_micro - total.reserved, included_micro = included_micro - total.of_included,
            balance_micro = balance_micro - (total.settled - total.of_included)
        FROM (
            SELECT owner, sum(reserved_micro) AS reserved, sum(settled_micro) AS settled, sum(of_included) AS of_included
            FROM parts GROUP BY owner
        ) AS total
        WHERE accounts.owner = total.owner AND accounts.owner = ANY (owners) AND total.reserved > 0
    ),
    of_keys AS (
        UPDATE key_spending SET reserved_micro = key_spending.reserved_micro - total.reserved, spent_micro = spent_micro + total.settled
        FROM (SELECT key_id, sum(reserved_micro) AS reserved, sum(settled_micro) AS settled FROM parts GROUP BY key_id) AS total
        WHERE key_spending.key_id = total.key_id AND key_spending.key_id = ANY (keys) AND total.reserved > 0
    ),
    booked AS (
        INSERT INTO entries (transfer, kind, account, owner, amount_micro)
        SELECT request_id, 'usage', side.account, owner, side.amount
        FROM parts, LATERAL (
            VALUES ('included', -of_included), ('balance', of_included - settled_micro), ('revenue', settled_micro)
        ) AS side (account, amount)
        WHERE side.amount <> 0
    )
    SELECT array_agg(settled_micro ORDER BY place.number) INTO costs
    FROM generate_series(1, cardinality(requests)) AS place (number) LEFT JOIN parts USING (number);
    RETURN costs;
END
$$;

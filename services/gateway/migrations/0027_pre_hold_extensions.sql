-- Running requests may raise what they hold. Older gateways only settle more than they reserved.
SET LOCAL lock_timeout = '1s';

-- Raises an open reservation to wanted_tokens for each answer, or to as many as the credits cover. Returns what it then holds for each
-- answer; NULL if it is not open. A smaller raise than least_more changes nothing, and so does the same raise a second time.
CREATE FUNCTION extend_hold(
    the_request uuid, wanted_tokens integer, least_more integer, answers integer, micro_per_million bigint, monthly_micro bigint,
    is_bounded boolean, key_budget_micro bigint, OUT granted_tokens integer
) LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    held reservations;
    account accounts;
    room bigint;
    key_room bigint;
    more integer;
    more_micro bigint;
BEGIN
    SELECT * INTO held FROM reservations WHERE request_id = the_request AND state = 'reserved';
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- The account first, as everywhere, and then the reservation again: it may have ended meanwhile.
    account := open_account(held.owner, monthly_micro);
    SELECT * INTO held FROM reservations WHERE request_id = the_request AND state = 'reserved' FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    granted_tokens := held.completion_tokens / answers;
    more := wanted_tokens - granted_tokens;
    IF is_bounded THEN
        room := account.included_micro + account.balance_micro - account.reserved_micro;
    END IF;
    IF key_budget_micro IS NOT NULL THEN
        SELECT key_budget_micro - spent_micro - reserved_micro INTO key_room FROM key_spending WHERE key_id = held.key_id;
        key_room := coalesce(key_room, key_budget_micro);
    END IF;
    -- Passes NULLs over.
    room := greatest(least(room, key_room), 0);
    IF (is_bounded OR key_budget_micro IS NOT NULL) AND ceil(more::numeric * answers * micro_per_million / 1000000) > room THEN
        more := floor(room::numeric * 1000000 / (micro_per_million * answers));
    END IF;
    IF more < greatest(least_more, 1) THEN
        RETURN;
    END IF;
    more_micro := ceil(more::numeric * answers * micro_per_million / 1000000);
    granted_tokens := granted_tokens + more;
    UPDATE reservations SET reserved_micro = reserved_micro + more_micro, completion_tokens = granted_tokens * answers
    WHERE request_id = the_request;
    IF more_micro > 0 THEN
        UPDATE accounts SET reserved_micro = reserved_micro + more_micro WHERE owner = held.owner;
        UPDATE key_spending SET reserved_micro = reserved_micro + more_micro WHERE key_id = held.key_id;
    END IF;
END
$$;

-- Raises what requests hold at the targets that serve them, after all accounts. Returns the requests that would exceed a day's ceiling. The
-- same amount a second time changes nothing.
CREATE FUNCTION extend_targets(requests uuid[], the_targets text[], the_micros bigint[], ceilings bigint[]) RETURNS TABLE (over_request uuid)
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    one record;
    more bigint;
BEGIN
    IF requests IS NULL THEN
        RETURN;
    END IF;
    PERFORM lock_spending();
    FOR one IN
        SELECT wanted.*, holds.day, holds.route, array_position(holds.targets, wanted.target::varchar) AS place, holds.micros
        FROM unnest(requests, the_targets, the_micros, ceilings) AS wanted (request, target, micro, ceiling)
        LEFT JOIN target_holds AS holds ON holds.request_id = wanted.request
        ORDER BY wanted.request
    LOOP
        more := one.micro - one.micros[one.place];
        CONTINUE WHEN more <= 0;
        IF more IS NOT NULL THEN
            UPDATE target_spending SET reserved_micro = reserved_micro + more
            WHERE day = one.day AND route = one.route AND target = one.target AND reserved_micro + spent_micro + more <= one.ceiling;
        END IF;
        IF more IS NULL OR NOT FOUND THEN
            over_request := one.request;
            RETURN NEXT;
        ELSE
            UPDATE target_holds SET micros[one.place] = one.micro WHERE request_id = one.request;
        END IF;
    END LOOP;
END
$$;

-- As in 0002, but it reads what is held under the lock: a raise may have been committed during the wait for it.
CREATE OR REPLACE FUNCTION settle(the_request uuid, cost_micro bigint, the_state text) RETURNS bigint
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    held reservations;
    account accounts;
    cost bigint;
    of_included bigint;
BEGIN
    SELECT * INTO held FROM reservations WHERE request_id = the_request AND state = 'reserved';
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT * INTO account FROM accounts WHERE owner = held.owner FOR UPDATE;
    UPDATE reservations SET state = the_state, settled_micro = greatest(0, least(cost_micro, reserved_micro)), ended_at = now()
    WHERE request_id = the_request AND state = 'reserved' RETURNING * INTO held;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF held.reserved_micro = 0 THEN
        RETURN 0;
    END IF;
    cost := held.settled_micro;
    of_included := least(account.included_micro, cost);
    UPDATE accounts
    SET reserved_micro = reserved_micro - held.reserved_micro, included_micro = included_micro - of_included,
        balance_micro = balance_micro - (cost - of_included)
    WHERE owner = held.owner;
    UPDATE key_spending SET reserved_micro = reserved_micro - held.reserved_micro, spent_micro = spent_micro + cost
    WHERE key_id = held.key_id;
    IF cost > 0 THEN
        INSERT INTO entries (transfer, kind, account, owner, amount_micro)
        SELECT the_request, 'usage', side.account, held.owner, side.amount
        FROM (VALUES ('included', -of_included), ('balance', of_included - cost), ('revenue', cost)) AS side (account, amount)
        WHERE side.amount <> 0;
    END IF;
    RETURN cost;
END
$$;

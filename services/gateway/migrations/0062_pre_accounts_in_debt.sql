-- An account that owes more than its plan allows sends no new requests, not even with tokens of the plan.
SET LOCAL lock_timeout = '1s';

-- As in 0035, and refuses accounts in debt. Holds what a request may cost at most: tokens of the plan first, and money for the rest. Where that
-- is more than there is, fewer tokens of output are granted; where it is not enough for the least of them, nothing is held and granted_tokens is
-- NULL. The same request a second time changes nothing. overage_micro: how far the balance may fall below zero; NULL: as far as it does.
CREATE OR REPLACE FUNCTION reserve(
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
    -- Requests alone never lead there: credits were taken back.
    IF account.balance_micro + overage_micro < 0 THEN
        granted_tokens := NULL;
        room_micro := account.balance_micro + overage_micro;
        limited_by := 'debt';
        account.budget_micro := owner_budget;
        PERFORM note_account(account, 'account');
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
    -- Running requests may hold all. Passes NULLs over.
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

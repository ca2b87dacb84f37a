-- The ledger: what each user has to spend, what running requests hold, and an entry for every micro-credit that moved.
--
-- 1 credit is 1,000,000 micro-credits. Users and keys belong to auth: no foreign key crosses a schema.

CREATE TABLE prices (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- NULL for every model that has no price of its own.
    model varchar(200),
    -- At most 10 credits a token, so that no sum of a request leaves a bigint.
    input_micro_per_million bigint NOT NULL CHECK (input_micro_per_million BETWEEN 0 AND 10000000000000),
    output_micro_per_million bigint NOT NULL CHECK (output_micro_per_million BETWEEN 0 AND 10000000000000),
    request_micro bigint NOT NULL CHECK (request_micro BETWEEN 0 AND 1000000000000),
    compute_second_micro bigint NOT NULL CHECK (compute_second_micro BETWEEN 0 AND 1000000000000),
    since timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE accounts (
    owner uuid PRIMARY KEY,
    -- What is left of the credits that the tier includes each month.
    included_micro bigint NOT NULL DEFAULT 0 CHECK (included_micro >= 0),
    -- What was topped up and is not spent; below zero where somebody without a bound owes it, or a correction took it.
    balance_micro bigint NOT NULL DEFAULT 0,
    -- What open reservations hold of both.
    reserved_micro bigint NOT NULL DEFAULT 0 CHECK (reserved_micro >= 0),
    -- The month whose credits were given, and how many.
    month date NOT NULL DEFAULT '0001-01-01',
    granted_micro bigint NOT NULL DEFAULT 0
);

-- For keys with a budget of their own; guarded by the lock on the owner's account.
CREATE TABLE key_spending (
    key_id uuid PRIMARY KEY,
    owner uuid NOT NULL,
    spent_micro bigint NOT NULL DEFAULT 0,
    reserved_micro bigint NOT NULL DEFAULT 0 CHECK (reserved_micro >= 0)
);

CREATE TABLE reservations (
    request_id uuid PRIMARY KEY,
    owner uuid NOT NULL,
    key_id uuid,
    model varchar(200) NOT NULL,
    -- The price of the moment when it was admitted.
    price_id bigint NOT NULL REFERENCES prices (id),
    state varchar(10) NOT NULL DEFAULT 'reserved' CHECK (state IN ('reserved', 'settled', 'released', 'expired')),
    reserved_micro bigint NOT NULL CHECK (reserved_micro >= 0),
    -- NULL while it is open.
    settled_micro bigint CHECK (settled_micro BETWEEN 0 AND reserved_micro),
    -- Bounds that a worker's word is held against.
    prompt_tokens integer NOT NULL,
    completion_tokens integer NOT NULL,
    -- Who runs it, and until when that is believed.
    gateway varchar(56) NOT NULL,
    lease_until timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    CHECK ((state = 'reserved') = (ended_at IS NULL))
);

CREATE INDEX reservations_open ON reservations (lease_until) WHERE state = 'reserved';

CREATE TABLE entries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The request, top-up or grant that it belongs to; all entries of one sum up to zero.
    transfer uuid NOT NULL,
    kind varchar(10) NOT NULL CHECK (kind IN ('usage', 'grant', 'expiry', 'top_up', 'reversal')),
    -- 'included' and 'balance' are the owner's; the others are the house's side of it.
    account varchar(10) NOT NULL CHECK (account IN ('included', 'balance', 'revenue', 'grants', 'payments')),
    owner uuid NOT NULL,
    amount_micro bigint NOT NULL CHECK (amount_micro <> 0),
    note text NOT NULL DEFAULT '',
    at timestamptz NOT NULL DEFAULT now(),
    -- The same transfer a second time is an error and no second payment.
    UNIQUE (transfer, kind, account)
);

CREATE INDEX entries_by_owner ON entries (owner, at);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'entries of the ledger are never changed: write a reversal';
END
$$;

CREATE TRIGGER entries_are_immutable BEFORE UPDATE OR DELETE ON entries FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER entries_stay BEFORE TRUNCATE ON entries FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

ALTER TABLE request_logs ADD COLUMN cost_micro bigint NOT NULL DEFAULT 0, ADD COLUMN cached boolean NOT NULL DEFAULT false;
ALTER TABLE usage_stats ADD COLUMN cost_micro bigint NOT NULL DEFAULT 0;

-- An owner's account, locked, with the credits of this month. Whoever changes an account or what hangs on it calls this first:
-- that lock is what makes sums exact. monthly_micro NULL gives none.
CREATE FUNCTION open_account(the_owner uuid, monthly_micro bigint) RETURNS accounts
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    account accounts;
    this_month date := date_trunc('month', now() AT TIME ZONE 'UTC')::date;
    grant_micro bigint;
    a_transfer uuid;
BEGIN
    SELECT * INTO account FROM accounts WHERE owner = the_owner FOR UPDATE;
    IF NOT FOUND THEN
        INSERT INTO accounts (owner) VALUES (the_owner) ON CONFLICT DO NOTHING;
        SELECT * INTO account FROM accounts WHERE owner = the_owner FOR UPDATE;
    END IF;
    IF account.month < this_month THEN
        IF account.included_micro > 0 THEN
            a_transfer := gen_random_uuid();
            INSERT INTO entries (transfer, kind, account, owner, amount_micro)
            VALUES (a_transfer, 'expiry', 'included', the_owner, -account.included_micro),
                   (a_transfer, 'expiry', 'grants', the_owner, account.included_micro);
        END IF;
        UPDATE accounts SET included_micro = 0, granted_micro = 0, month = this_month
        WHERE owner = the_owner RETURNING * INTO account;
    END IF;
    -- Who changes to a larger tier gets the difference at once.
    grant_micro := coalesce(monthly_micro, 0) - account.granted_micro;
    IF grant_micro > 0 THEN
        a_transfer := gen_random_uuid();
        INSERT INTO entries (transfer, kind, account, owner, amount_micro)
        VALUES (a_transfer, 'grant', 'included', the_owner, grant_micro),
               (a_transfer, 'grant', 'grants', the_owner, -grant_micro);
        UPDATE accounts SET included_micro = included_micro + grant_micro, granted_micro = granted_micro + grant_micro
        WHERE owner = the_owner RETURNING * INTO account;
    END IF;
    RETURN account;
END
$$;

-- Holds what a request may cost at most. Where that is more than there is, fewer tokens of output are granted; where it is not
-- enough for the least of them, nothing is held and granted_tokens is NULL. The same request a second time changes nothing.
CREATE FUNCTION reserve(
    the_request uuid, the_owner uuid, the_key uuid, the_model text, the_price bigint, the_gateway text, lease_seconds double precision,
    the_prompt_tokens integer, wanted_tokens integer, least_tokens integer, answers integer,
    fixed_micro bigint, micro_per_million bigint, monthly_micro bigint, is_bounded boolean, key_budget_micro bigint,
    OUT granted_tokens integer, OUT room_micro bigint, OUT key_is_tightest boolean, OUT is_repeated boolean
) LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    account accounts;
    key_room bigint;
    held bigint;
BEGIN
    account := open_account(the_owner, monthly_micro);
    -- Under the lock, so that of two at once one sees the other's.
    SELECT completion_tokens / answers INTO granted_tokens FROM reservations WHERE request_id = the_request;
    is_repeated := FOUND;
    key_is_tightest := false;
    IF is_repeated THEN
        RETURN;
    END IF;
    IF is_bounded THEN
        room_micro := account.included_micro + account.balance_micro - account.reserved_micro;
    END IF;
    IF key_budget_micro IS NOT NULL THEN
        SELECT key_budget_micro - spent_micro - key_spending.reserved_micro INTO key_room FROM key_spending WHERE key_id = the_key;
        key_room := coalesce(key_room, key_budget_micro);
    END IF;
    key_is_tightest := key_room IS NOT NULL AND (room_micro IS NULL OR key_room < room_micro);
    -- least() passes NULLs over.
    room_micro := least(room_micro, key_room);
    granted_tokens := wanted_tokens;
    held := fixed_micro + ceil(wanted_tokens::numeric * answers * micro_per_million / 1000000);
    IF held > room_micro THEN
        IF room_micro < fixed_micro OR micro_per_million = 0 THEN
            granted_tokens := NULL;
            RETURN;
        END IF;
        granted_tokens := floor((room_micro - fixed_micro)::numeric * 1000000 / (micro_per_million * answers));
        IF granted_tokens < least(least_tokens, wanted_tokens) THEN
            granted_tokens := NULL;
            RETURN;
        END IF;
        held := fixed_micro + ceil(granted_tokens::numeric * answers * micro_per_million / 1000000);
    END IF;
    INSERT INTO reservations (
        request_id, owner, key_id, model, price_id, reserved_micro, prompt_tokens, completion_tokens, gateway, lease_until
    ) VALUES (
        the_request, the_owner, the_key, the_model, the_price, held, the_prompt_tokens, granted_tokens * answers, the_gateway,
        now() + make_interval(secs => lease_seconds)
    );
    IF held > 0 THEN
        UPDATE accounts SET reserved_micro = reserved_micro + held WHERE owner = the_owner;
        IF the_key IS NOT NULL THEN
            INSERT INTO key_spending (key_id, owner, reserved_micro) VALUES (the_key, the_owner, held)
            ON CONFLICT (key_id) DO UPDATE SET reserved_micro = key_spending.reserved_micro + held;
        END IF;
    END IF;
END
$$;

-- Ends a reservation with what the request cost, but never more than was held; NULL where it is not open (any more).
CREATE FUNCTION settle(the_request uuid, cost_micro bigint, the_state text) RETURNS bigint
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
    -- The account first, as everywhere, and then the reservation again: somebody may have been faster.
    SELECT * INTO account FROM accounts WHERE owner = held.owner FOR UPDATE;
    cost := greatest(0, least(cost_micro, held.reserved_micro));
    UPDATE reservations SET state = the_state, settled_micro = cost, ended_at = now()
    WHERE request_id = the_request AND state = 'reserved';
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF held.reserved_micro = 0 THEN
        RETURN 0;
    END IF;
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

-- Moves credits between an owner's balance and the house's payments. The same transfer a second time is a unique violation.
CREATE FUNCTION top_up(the_transfer uuid, the_owner uuid, amount bigint, the_note text, monthly_micro bigint) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM open_account(the_owner, monthly_micro);
    INSERT INTO entries (transfer, kind, account, owner, amount_micro, note)
    VALUES (the_transfer, 'top_up', 'balance', the_owner, amount, the_note),
           (the_transfer, 'top_up', 'payments', the_owner, -amount, the_note);
    UPDATE accounts SET balance_micro = balance_micro + amount WHERE owner = the_owner;
END
$$;

-- Gives back what a request cost, to the balance: credits of its month may be over. False where it cost nothing; a second time is a
-- unique violation.
CREATE FUNCTION revert(the_request uuid, the_note text) RETURNS uuid
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    the_owner uuid;
    the_key uuid;
    cost bigint;
BEGIN
    SELECT owner, key_id, settled_micro INTO the_owner, the_key, cost FROM reservations
    WHERE request_id = the_request AND state <> 'reserved' AND settled_micro > 0;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM open_account(the_owner, NULL);
    INSERT INTO entries (transfer, kind, account, owner, amount_micro, note)
    VALUES (the_request, 'reversal', 'balance', the_owner, cost, the_note),
           (the_request, 'reversal', 'revenue', the_owner, -cost, the_note);
    UPDATE accounts SET balance_micro = balance_micro + cost WHERE owner = the_owner;
    UPDATE key_spending SET spent_micro = spent_micro - cost WHERE key_id = the_key;
    RETURN the_owner;
END
$$;

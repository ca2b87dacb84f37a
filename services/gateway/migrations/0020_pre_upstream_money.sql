-- What answers of external providers cost, what answers of our own machines avoided, and what a target may cost in a day. All new columns have
-- constant defaults, so no table is rewritten.
SET LOCAL lock_timeout = '1s';

ALTER TABLE request_logs
    -- Who got the prompt; null if it stayed on the operator's machines.
    ADD COLUMN provider varchar(64),
    -- Workers that ran it.
    ADD COLUMN attempts smallint NOT NULL DEFAULT 0,
    -- Of all attempts, at the upstream prices of that moment.
    ADD COLUMN upstream_micro bigint NOT NULL DEFAULT 0,
    -- What an internal answer would have cost at the target that its route compares with.
    ADD COLUMN avoided_micro bigint NOT NULL DEFAULT 0;

ALTER TABLE usage_days
    ADD COLUMN route varchar(100),
    ADD COLUMN target varchar(100),
    ADD COLUMN provider varchar(64),
    ADD COLUMN upstream_micro bigint NOT NULL DEFAULT 0,
    ADD COLUMN avoided_micro bigint NOT NULL DEFAULT 0;

ALTER TABLE reservations
    -- Of the last claim, as model and price.
    ADD COLUMN provider varchar(64),
    -- What it holds of the ceilings of targets, all of one route; null for nothing.
    ADD COLUMN held_route varchar(100),
    ADD COLUMN held_targets varchar(100)[],
    ADD COLUMN held_target_micro bigint[];

-- What external targets cost in a UTC day. Everybody who changes it holds `lock_spending` until the end of the transaction, after all accounts.
CREATE TABLE target_spending (
    day date NOT NULL,
    -- Empty without a route; the target is then the model.
    route varchar(100) NOT NULL,
    target varchar(200) NOT NULL,
    -- What open reservations hold.
    reserved_micro bigint NOT NULL DEFAULT 0 CHECK (reserved_micro >= 0),
    spent_micro bigint NOT NULL DEFAULT 0 CHECK (spent_micro >= 0),
    PRIMARY KEY (day, route, target)
);

CREATE FUNCTION lock_spending() RETURNS void LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT pg_advisory_xact_lock(hashtextextended('aimesh.gateway.target_spending', 0))
$$;

-- Holds what a request may cost at a target; false if that would exceed the day's ceiling.
CREATE FUNCTION hold_target(the_request uuid, the_route text, the_target text, micro bigint, ceiling_micro bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    held_since timestamptz;
BEGIN
    PERFORM lock_spending();
    SELECT created_at INTO held_since FROM reservations
    WHERE request_id = the_request AND state = 'reserved' AND NOT (the_target = ANY (coalesce(held_targets, '{}')));
    IF NOT FOUND THEN
        -- Repeated: it has this hold already, or has ended.
        RETURN true;
    END IF;
    INSERT INTO target_spending (day, route, target) VALUES ((held_since AT TIME ZONE 'UTC')::date, the_route, the_target) ON CONFLICT DO NOTHING;
    UPDATE target_spending SET reserved_micro = reserved_micro + micro
    WHERE day = (held_since AT TIME ZONE 'UTC')::date AND route = the_route AND target = the_target
        AND reserved_micro + spent_micro + micro <= ceiling_micro;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE reservations
    SET held_route = the_route, held_targets = held_targets || the_target::varchar, held_target_micro = held_target_micro || micro
    WHERE request_id = the_request;
    RETURN true;
END
$$;

-- At the end of the transaction that ends a reservation, when all accounts are locked.
CREATE FUNCTION release_targets() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM lock_spending();
    UPDATE target_spending AS spending SET reserved_micro = spending.reserved_micro - held.micro
    FROM unnest(NEW.held_targets, NEW.held_target_micro) AS held (target, micro)
    WHERE spending.day = (NEW.created_at AT TIME ZONE 'UTC')::date AND spending.route = NEW.held_route AND spending.target = held.target;
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER targets_are_released AFTER UPDATE OF state ON reservations DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW WHEN (OLD.state = 'reserved' AND NEW.state <> 'reserved' AND NEW.held_targets IS NOT NULL) EXECUTE FUNCTION release_targets();

CREATE FUNCTION spend_target(the_day date, the_route text, the_target text, micro bigint) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM lock_spending();
    INSERT INTO target_spending AS known (day, route, target, spent_micro) VALUES (the_day, the_route, the_target, micro)
    ON CONFLICT (day, route, target) DO UPDATE SET spent_micro = known.spent_micro + excluded.spent_micro;
END
$$;

-- As in 0014, with the new columns.
CREATE OR REPLACE VIEW request_usage WITH (security_invoker) AS
SELECT log.id, log.created_at, (log.created_at AT TIME ZONE 'UTC')::date AS day,
    log.tenant_id, log.user_id, log.model_used AS model, log.worker_owner, log.worker_labels,
    (log.status = 'success')::integer AS succeeded,
    (log.status = 'error')::integer AS failed,
    (log.status = 'timeout')::integer AS timed_out,
    (log.status = 'cancelled')::integer AS cancelled,
    (log.status = 'limited')::integer AS limited,
    log.prompt_tokens, log.completion_tokens, log.cost_micro,
    CASE WHEN log.status = 'success' THEN log.response_time_ms ELSE 0 END AS response_ms,
    CASE WHEN log.status = 'success' AND NOT log.cached THEN log.completion_tokens ELSE 0 END AS made_tokens,
    CASE WHEN log.status = 'success' AND NOT log.cached THEN log.response_time_ms ELSE 0 END AS made_ms,
    log.cached::integer AS cached,
    log.saved_micro,
    (log.begins_conversation AND log.status NOT IN ('limited', 'rejected'))::integer AS conversations,
    coalesce(feedback.rating > 0, false)::integer AS thumbs_up,
    coalesce(feedback.rating < 0, false)::integer AS thumbs_down,
    log.route, log.target, log.provider, log.upstream_micro, log.avoided_micro
FROM request_logs AS log
LEFT JOIN feedback ON feedback.request_id = log.id;

CREATE OR REPLACE FUNCTION usage_of_time(since timestamptz, until timestamptz) RETURNS SETOF usage_days LANGUAGE sql STABLE
SET search_path FROM CURRENT AS $$
    SELECT day, tenant_id, user_id, model, worker_owner, worker_labels,
        sum(succeeded)::integer, sum(failed)::integer, sum(timed_out)::integer, sum(cancelled)::integer, sum(limited)::integer,
        sum(prompt_tokens)::bigint, sum(completion_tokens)::bigint, sum(cost_micro)::bigint,
        sum(response_ms)::bigint, sum(made_tokens)::bigint, sum(made_ms)::bigint,
        sum(cached)::integer, sum(saved_micro)::bigint, sum(conversations)::integer,
        sum(thumbs_up)::integer, sum(thumbs_down)::integer,
        route, target, provider, sum(upstream_micro)::bigint, sum(avoided_micro)::bigint
    FROM request_usage
    WHERE created_at >= since AND created_at < until
    GROUP BY day, tenant_id, user_id, model, worker_owner, worker_labels, route, target, provider
$$;

CREATE OR REPLACE FUNCTION join_pieces(the_day date) RETURNS void LANGUAGE sql SET search_path FROM CURRENT AS $$
    WITH pieces AS (DELETE FROM usage_days WHERE day = the_day RETURNING *)
    INSERT INTO usage_days
    SELECT day, tenant_id, user_id, model, worker_owner, worker_labels,
        sum(succeeded), sum(failed), sum(timed_out), sum(cancelled), sum(limited), sum(prompt_tokens), sum(completion_tokens),
        sum(cost_micro), sum(response_ms), sum(made_tokens), sum(made_ms), sum(cached), sum(saved_micro), sum(conversations),
        sum(thumbs_up), sum(thumbs_down), route, target, provider, sum(upstream_micro), sum(avoided_micro)
    FROM pieces
    GROUP BY day, tenant_id, user_id, model, worker_owner, worker_labels, route, target, provider
$$;

CREATE OR REPLACE FUNCTION add_late_requests() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM added WHERE created_at < now() - interval '2 minutes') THEN
        RETURN NULL;
    END IF;
    INSERT INTO usage_rolls (day)
    SELECT DISTINCT (created_at AT TIME ZONE 'UTC')::date FROM added WHERE created_at < now() - interval '2 minutes' ORDER BY 1
    ON CONFLICT DO NOTHING;
    PERFORM FROM usage_rolls WHERE day IN (SELECT (created_at AT TIME ZONE 'UTC')::date FROM added) ORDER BY day FOR SHARE;
    INSERT INTO usage_days
    SELECT late.day, late.tenant_id, late.user_id, late.model, late.worker_owner, late.worker_labels, late.succeeded, late.failed,
        late.timed_out, late.cancelled, late.limited, late.prompt_tokens, late.completion_tokens, late.cost_micro, late.response_ms,
        late.made_tokens, late.made_ms, late.cached, late.saved_micro, late.conversations, late.thumbs_up, late.thumbs_down,
        late.route, late.target, late.provider, late.upstream_micro, late.avoided_micro
    FROM request_usage AS late JOIN usage_rolls AS roll USING (day)
    WHERE late.id IN (SELECT id FROM added) AND late.created_at < summed_until(roll) AND NOT roll.is_final;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION add_late_thumb() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    rated request_usage;
    ups integer := 0;
    downs integer := 0;
BEGIN
    IF TG_OP <> 'INSERT' THEN
        ups := ups - (OLD.rating > 0)::integer;
        downs := downs - (OLD.rating < 0)::integer;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        ups := ups + (NEW.rating > 0)::integer;
        downs := downs + (NEW.rating < 0)::integer;
    END IF;
    SELECT * INTO rated FROM request_usage WHERE id = coalesce(NEW.request_id, OLD.request_id) AND created_at < now() - interval '2 minutes';
    IF NOT FOUND OR (ups = 0 AND downs = 0) THEN
        RETURN NULL;
    END IF;
    PERFORM FROM usage_rolls WHERE day = rated.day FOR SHARE;
    INSERT INTO usage_days
    SELECT rated.day, rated.tenant_id, rated.user_id, rated.model, rated.worker_owner, rated.worker_labels,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ups, downs, rated.route, rated.target, rated.provider, 0, 0
    FROM usage_rolls AS roll WHERE roll.day = rated.day AND rated.created_at < summed_until(roll) AND NOT roll.is_final;
    RETURN NULL;
END
$$;

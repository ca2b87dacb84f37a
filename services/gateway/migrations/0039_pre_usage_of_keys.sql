-- Reports by key, and by the plan of the account when the request began.
SET LOCAL lock_timeout = '1s';

ALTER TABLE request_logs ADD COLUMN plan varchar(64);

ALTER TABLE usage_days
    -- Null for a login, and in sums from before these columns; the same for the plan.
    ADD COLUMN api_key_id uuid,
    ADD COLUMN plan varchar(64);

-- As in 0020, with the new columns.
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
    log.route, log.target, log.provider, log.upstream_micro, log.avoided_micro, log.api_key_id, log.plan
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
        route, target, provider, sum(upstream_micro)::bigint, sum(avoided_micro)::bigint, api_key_id, plan
    FROM request_usage
    WHERE created_at >= since AND created_at < until
    GROUP BY day, tenant_id, user_id, model, worker_owner, worker_labels, route, target, provider, api_key_id, plan
$$;

CREATE OR REPLACE FUNCTION join_pieces(the_day date) RETURNS void LANGUAGE sql SET search_path FROM CURRENT AS $$
    WITH pieces AS (DELETE FROM usage_days WHERE day = the_day RETURNING *)
    INSERT INTO usage_days
    SELECT day, tenant_id, user_id, model, worker_owner, worker_labels,
        sum(succeeded), sum(failed), sum(timed_out), sum(cancelled), sum(limited), sum(prompt_tokens), sum(completion_tokens),
        sum(cost_micro), sum(response_ms), sum(made_tokens), sum(made_ms), sum(cached), sum(saved_micro), sum(conversations),
        sum(thumbs_up), sum(thumbs_down), route, target, provider, sum(upstream_micro), sum(avoided_micro), api_key_id, plan
    FROM pieces
    GROUP BY day, tenant_id, user_id, model, worker_owner, worker_labels, route, target, provider, api_key_id, plan
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
        late.route, late.target, late.provider, late.upstream_micro, late.avoided_micro,
        late.api_key_id, late.plan
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
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ups, downs, rated.route, rated.target, rated.provider, 0, 0,
        rated.api_key_id, rated.plan
    FROM usage_rolls AS roll WHERE roll.day = rated.day AND rated.created_at < summed_until(roll) AND NOT roll.is_final;
    RETURN NULL;
END
$$;

-- A request that its caller withdrew at any gateway, and a row for each request that another gateway took over.
SET LOCAL lock_timeout = '1s';

-- The request that its caller wants no more. Not a flag: whoever takes the key over runs another request, which nobody withdrew.
ALTER TABLE idempotency_keys ADD COLUMN withdrawn_request uuid;

-- As before, and the request has its row in the log: its own gateway may be dead and write none. If that gateway lives after all, its row
-- for the same id changes nothing.
CREATE OR REPLACE FUNCTION release_what_was_taken_over() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    held reservations;
    began timestamptz := OLD.created_at;
BEGIN
    PERFORM settle(OLD.request_id, 0, 'expired');
    SELECT * INTO held FROM reservations WHERE request_id = OLD.request_id;
    IF FOUND THEN
        began := held.created_at;
    END IF;
    INSERT INTO request_logs (
        id, tenant_id, user_id, api_key_id, model_used, response_time_ms, tokens_used, prompt_tokens, completion_tokens, status, error_code, created_at
    ) VALUES (
        OLD.request_id, OLD.owner, OLD.owner, held.key_id, held.model,
        least(extract(epoch FROM clock_timestamp() - began) * 1000, 2147483647)::integer, 0, 0, 0, 'error', 'gateway_lost', began
    ) ON CONFLICT (id) DO NOTHING;
    IF FOUND AND began < date_trunc('day', now(), 'UTC') THEN
        INSERT INTO usage_rolls (day) VALUES ((began AT TIME ZONE 'UTC')::date) ON CONFLICT (day) DO UPDATE SET is_stale = true;
    END IF;
    RETURN NULL;
END
$$;

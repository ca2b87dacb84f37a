-- name: write_requests
-- Requests that ended, into the log and, where something was delivered, into the day's usage; rows that are there already change nothing.
WITH fresh AS (
    INSERT INTO request_logs (
        id, user_id, api_key_id, prompt_hash, model_used, response_time_ms,
        tokens_used, prompt_tokens, completion_tokens, status, error_code, created_at
    )
    SELECT id, user_id, api_key_id, prompt_hash, model_used, response_time_ms,
           prompt_tokens + completion_tokens, prompt_tokens, completion_tokens, status, error_code, created_at
    FROM unnest(
        $1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::integer[],
        $7::integer[], $8::integer[], $9::text[], $10::text[], $11::timestamptz[]
    ) AS row (
        id, user_id, api_key_id, prompt_hash, model_used, response_time_ms,
        prompt_tokens, completion_tokens, status, error_code, created_at
    )
    ON CONFLICT (id) DO NOTHING
    RETURNING user_id, api_key_id, tokens_used, status, created_at
)
INSERT INTO usage_stats (user_id, api_key_id, date, request_count, tokens_used)
SELECT user_id, api_key_id, (created_at AT TIME ZONE 'UTC')::date, count(*), sum(tokens_used)
FROM fresh
WHERE status = 'success' OR tokens_used > 0
GROUP BY 1, 2, 3
-- Always in this order, so that two gateways never wait for each other's rows in a circle.
ORDER BY 1, 2, 3
ON CONFLICT (user_id, api_key_id, date) DO UPDATE SET
    request_count = usage_stats.request_count + excluded.request_count,
    tokens_used = usage_stats.tokens_used + excluded.tokens_used;

-- name: list_usage_days
-- What one user used on each day of the last year, newest first.
SELECT date, api_key_id, request_count, tokens_used
FROM usage_stats
WHERE user_id = $1 AND date > (now() AT TIME ZONE 'UTC')::date - 365
ORDER BY date DESC, api_key_id NULLS LAST;

-- name: sum_usage
-- What one user used in all.
SELECT coalesce(sum(request_count), 0)::bigint AS request_count, coalesce(sum(tokens_used), 0)::bigint AS tokens_used
FROM usage_stats
WHERE user_id = $1;

-- Requests whose caller has to change something are `rejected`, and no errors. The lock is held for a change of the catalog alone: what the
-- narrower constraint let in needs no second look.
SET LOCAL lock_timeout = '200ms';

ALTER TABLE request_logs DROP CONSTRAINT request_logs_status_check;
ALTER TABLE request_logs ADD CONSTRAINT request_logs_status_check
    CHECK (status IN ('success', 'error', 'timeout', 'cancelled', 'limited', 'rejected')) NOT VALID;

-- As before, and a request that was rejected is in no number of requests and begins no conversation. Its tokens count, as those of every row:
-- it has some only where a stream broke off by its caller's fault, and those were made.
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
    coalesce(feedback.rating < 0, false)::integer AS thumbs_down
FROM request_logs AS log
LEFT JOIN feedback ON feedback.request_id = log.id;

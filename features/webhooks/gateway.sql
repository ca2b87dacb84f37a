-- name: lock_webhooks_of
-- Let one transaction at a time add endpoints or tests of a tenant.
SELECT pg_advisory_xact_lock(hashtextextended('aimesh.gateway.webhooks.' || $1::uuid, 0));

-- name: count_webhook_endpoints
-- Count the endpoints of a tenant.
SELECT count(*) FROM webhook_endpoints WHERE tenant_id = $1;

-- name: add_webhook_endpoint
-- Add an endpoint.
INSERT INTO webhook_endpoints (id, tenant_id, name, url, event_types, secret) VALUES ($1, $2, $3, $4, $5, $6);

-- name: list_webhook_endpoints
-- List the endpoints of a tenant, newest first, or the one with the id $2, each with its latest attempt.
SELECT endpoints.*, last.id AS event_id, last.attempt, last.attempted_at, last.last_status, last.last_error, last.next_at, last.ended_at
FROM webhook_endpoints AS endpoints
LEFT JOIN LATERAL (
    SELECT * FROM webhook_deliveries
    WHERE endpoint_id = endpoints.id AND attempted_at IS NOT NULL ORDER BY attempted_at DESC LIMIT 1
) AS last ON true
WHERE endpoints.tenant_id = $1 AND ($2::uuid IS NULL OR endpoints.id = $2)
ORDER BY endpoints.id DESC;

-- name: change_webhook_endpoint
-- Change an endpoint where a value is given, and enable it.
UPDATE webhook_endpoints SET name = coalesce($3, name), url = coalesce($4, url), event_types = coalesce($5, event_types),
    updated_at = now(), fails_since = NULL, timed_out = false, disabled_at = NULL, disabled_why = NULL
WHERE tenant_id = $1 AND id = $2;

-- name: rotate_webhook_secret
-- Replace the secret; the former one is kept for $4 seconds, or not at all.
UPDATE webhook_endpoints SET former_secret = CASE WHEN $4 > 0 THEN secret END, former_until = now() + make_interval(secs => $4),
    secret = $3, updated_at = now()
WHERE tenant_id = $1 AND id = $2;

-- name: delete_webhook_endpoint
-- Delete an endpoint and its deliveries.
DELETE FROM webhook_endpoints WHERE tenant_id = $1 AND id = $2;

-- name: erase_webhook_endpoints
-- Delete all endpoints of a tenant and their deliveries.
DELETE FROM webhook_endpoints WHERE tenant_id = $1;

-- name: lock_webhook_receivers
-- Return the endpoints of a tenant that get events of a type. They can't be deleted until the end of the transaction.
SELECT id FROM webhook_endpoints WHERE tenant_id = $1 AND $2 = ANY (event_types) AND disabled_at IS NULL FOR KEY SHARE;

-- name: count_webhook_tests
-- Count the tests of an endpoint within a minute.
SELECT count(*) FROM webhook_deliveries WHERE endpoint_id = $1 AND is_test AND created_at > now() - interval '1 minute';

-- name: add_webhook_delivery
-- Add an event for an endpoint, unless it has it.
INSERT INTO webhook_deliveries (id, tenant_id, endpoint_id, body, is_test) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING;

-- name: find_webhook_attempt
-- Return how the latest attempt of a delivery ended.
SELECT id AS event_id, attempt, attempted_at, last_status, last_error, next_at, ended_at FROM webhook_deliveries
WHERE tenant_id = $1 AND id = $2 AND attempted_at IS NOT NULL;

-- name: take_webhook_delivery
-- Take the delivery that is due longest for $1 seconds, of the next tenant behind $4; an endpoint gets at most $2 now, a tenant $3.
WITH RECURSIVE turns AS (
    -- One step for each tenant, however many deliveries it has, until one gets a place.
    (SELECT tenant_id FROM webhook_deliveries WHERE ended_at IS NULL AND tenant_id > $4 ORDER BY tenant_id LIMIT 1)
    UNION ALL
    SELECT (
        SELECT tenant_id FROM webhook_deliveries WHERE ended_at IS NULL AND tenant_id > turns.tenant_id ORDER BY tenant_id LIMIT 1
    ) FROM turns WHERE tenant_id IS NOT NULL
), due AS MATERIALIZED (
    SELECT found.id FROM turns CROSS JOIN LATERAL (
        SELECT oldest.id FROM webhook_endpoints AS endpoints
        CROSS JOIN LATERAL (
            SELECT id, next_at FROM webhook_deliveries
            WHERE endpoint_id = endpoints.id AND ended_at IS NULL AND next_at <= now() AND lease_until < now() ORDER BY next_at LIMIT 1
        ) AS oldest
        WHERE endpoints.tenant_id = turns.tenant_id AND disabled_at IS NULL AND (
            SELECT count(*) FROM webhook_deliveries WHERE endpoint_id = endpoints.id AND ended_at IS NULL AND lease_until >= now()
        ) < CASE WHEN timed_out THEN 1 ELSE $2 END
        ORDER BY oldest.next_at LIMIT 1 FOR NO KEY UPDATE OF endpoints SKIP LOCKED
    ) AS found
    WHERE EXISTS (SELECT FROM webhook_deliveries WHERE tenant_id = turns.tenant_id AND ended_at IS NULL AND next_at <= now()) AND (
        SELECT count(*) FROM webhook_endpoints AS endpoints JOIN webhook_deliveries ON endpoint_id = endpoints.id
        WHERE endpoints.tenant_id = turns.tenant_id AND ended_at IS NULL AND lease_until >= now()
    ) < $3
    LIMIT 1
)
UPDATE webhook_deliveries SET attempt = attempt + 1, lease_until = now() + make_interval(secs => $1)
FROM due, webhook_endpoints AS endpoints
-- Another gateway may have taken it since the snapshot.
WHERE webhook_deliveries.id = due.id AND endpoint_id = endpoints.id AND lease_until < now() AND ended_at IS NULL
RETURNING webhook_deliveries.id, webhook_deliveries.tenant_id, endpoint_id, body, is_test, attempt, url, secret,
    CASE WHEN former_until > now() THEN former_secret END AS former_secret;

-- name: lock_webhook_endpoint
-- Lock an endpoint until the end of the transaction.
SELECT FROM webhook_endpoints WHERE id = $1 FOR NO KEY UPDATE;

-- name: end_webhook_attempt
-- Note how the attempt $2 ended, and that another follows in $5 seconds; null: none does.
UPDATE webhook_deliveries SET lease_until = '-infinity', attempted_at = clock_timestamp(), last_status = $3, last_error = $4,
    next_at = coalesce(clock_timestamp() + make_interval(secs => $5), next_at), ended_at = CASE WHEN $5::float8 IS NULL THEN now() END
WHERE id = $1 AND attempt = $2 AND ended_at IS NULL;

-- name: note_webhook_success
-- Note that an endpoint works.
UPDATE webhook_endpoints SET fails_since = NULL, timed_out = false WHERE id = $1 AND fails_since IS NOT NULL;

-- name: note_webhook_failure
-- Note that an endpoint fails, and whether in time; return whether it has done nothing else for $2 seconds.
UPDATE webhook_endpoints SET fails_since = coalesce(fails_since, now()), timed_out = $3 WHERE id = $1
RETURNING fails_since < now() - make_interval(secs => $2);

-- name: disable_webhook_endpoint
-- Send nothing to an endpoint any more; return it unless it is disabled already.
WITH ended AS (
    UPDATE webhook_deliveries SET ended_at = now(), lease_until = '-infinity' WHERE endpoint_id = $1 AND ended_at IS NULL
)
UPDATE webhook_endpoints SET disabled_at = now(), disabled_why = $2 WHERE id = $1 AND disabled_at IS NULL RETURNING tenant_id, name;

-- name: delete_webhook_deliveries
-- Delete deliveries that ended more than $1 days ago.
DELETE FROM webhook_deliveries WHERE ended_at < now() - make_interval(days => $1);

-- name: measure_webhooks
-- Return for how many seconds a delivery is due that no gateway takes, of endpoints that work and tenants that get nothing now.
SELECT coalesce(extract(epoch FROM now() - min(next_at)), 0)::float8 FROM webhook_deliveries AS deliveries
JOIN webhook_endpoints AS endpoints ON endpoints.id = endpoint_id
WHERE ended_at IS NULL AND next_at <= now() AND disabled_at IS NULL AND fails_since IS NULL AND NOT EXISTS (
    SELECT FROM webhook_endpoints AS siblings JOIN webhook_deliveries AS others ON others.endpoint_id = siblings.id
    WHERE siblings.tenant_id = deliveries.tenant_id AND others.ended_at IS NULL AND others.lease_until >= now()
);

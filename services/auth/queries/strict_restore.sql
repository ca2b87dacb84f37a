-- name: end_recent_access
-- End all keys and accounts that were created or changed since $1; asking for a new password or an export changes nothing.
WITH changed AS (
    SELECT target AS id
    FROM audit_log
    WHERE at >= $1 AND result = 'done' AND action NOT IN ('password.ask_reset', 'account.export')
    UNION
    SELECT actor::text
    FROM audit_log
    WHERE at >= $1 AND result = 'done' AND (starts_with(action, 'mfa.') OR starts_with(action, 'oidc.') OR starts_with(action, 'password.'))
        AND action <> 'password.ask_reset'
    UNION
    -- Changes that no method of ours made.
    SELECT subject FROM recovery_log WHERE at >= $1
),

disabled AS (
    UPDATE users SET is_active = false
    WHERE is_active AND (created_at >= $1 OR id::text IN (SELECT changed.id FROM changed))
    RETURNING id
),

revoked AS (
    UPDATE api_keys SET is_active = false
    WHERE is_active AND (created_at >= $1 OR id::text IN (SELECT changed.id FROM changed))
    RETURNING id
)

SELECT (SELECT count(*) FROM revoked) AS keys, (SELECT count(*) FROM disabled) AS users;

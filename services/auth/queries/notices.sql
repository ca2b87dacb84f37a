-- name: add_sign_in_notice
-- Add a notice about a sign-in, unless the user wants none, the account is younger than $4 seconds, or $5 were added within an hour.
INSERT INTO notices (user_id, kind, subject, details)
SELECT users.id, 'sign_in', $2, $3::jsonb
FROM users
LEFT JOIN preferences ON preferences.user_id = users.id
WHERE users.id = $1 AND coalesce(preferences.notify_by_mail, true) AND users.created_at < now() - make_interval(secs => $4)
    AND (
        SELECT count(*) FROM notices
        WHERE user_id = $1 AND kind = 'sign_in' AND created_at > now() - interval '1 hour'
    ) < $5
ON CONFLICT DO NOTHING;

-- name: add_account_notice
-- Add a notice about an account, to its user or to the organization's owners, as far as they want mails.
INSERT INTO notices (user_id, kind, subject, details)
SELECT users.id, $2, $3, jsonb_build_object(
    'fact', $4::text::jsonb, 'currency', $5::text, 'organization', organisations.name, 'key', (SELECT name FROM api_keys WHERE id = $6)
)
FROM users
LEFT JOIN organisations ON organisations.id = $1
LEFT JOIN preferences ON preferences.user_id = users.id
WHERE users.is_active AND coalesce(preferences.notify_by_mail, true) AND (
    users.id = $1 OR users.id IN (SELECT user_id FROM organisation_members WHERE organisation_id = $1 AND role = 'owner')
)
ON CONFLICT DO NOTHING;

-- name: add_key_notices
-- Add notices of the kind $3 about the next $2 keys that expire within $1 days, to users who want them; return how many keys were searched.
-- While another replica does it, none. A key that never had more than $1 days gets none, because its user knows.
WITH scan AS MATERIALIZED (
    SELECT until, last_id FROM notice_scans WHERE kind = $3 FOR UPDATE SKIP LOCKED
), found AS MATERIALIZED (
    SELECT api_keys.id, api_keys.user_id, api_keys.name, api_keys.preview, api_keys.created_at, api_keys.expires_at
    FROM api_keys
    WHERE api_keys.is_active AND api_keys.expires_at IS NOT NULL
        AND (api_keys.expires_at, api_keys.id) > ((SELECT until FROM scan), (SELECT last_id FROM scan))
        AND api_keys.expires_at <= now() + make_interval(days => $1)
    ORDER BY api_keys.expires_at, api_keys.id
    LIMIT $2
), added AS (
    INSERT INTO notices (user_id, kind, subject, details)
    SELECT found.user_id, $3, found.id::text,
        jsonb_build_object('name', found.name, 'preview', found.preview, 'expires_at', found.expires_at)
    FROM found
    JOIN users ON users.id = found.user_id
    LEFT JOIN preferences ON preferences.user_id = found.user_id
    WHERE users.is_active AND coalesce(preferences.notify_by_mail, true)
        AND found.expires_at > now() AND found.expires_at - found.created_at > make_interval(days => $1)
    ON CONFLICT DO NOTHING
), moved AS (
    UPDATE notice_scans SET (until, last_id) = (SELECT expires_at, id FROM found ORDER BY expires_at DESC, id DESC LIMIT 1)
    WHERE kind = $3 AND EXISTS (SELECT FROM found)
)
SELECT count(*) FROM found;

-- name: take_notice
-- The notice of the kinds $2 that is due for longest, for this replica: another one tries after $1 seconds, twice as long after each try.
WITH next AS (
    SELECT user_id, kind, subject FROM notices WHERE due_at <= now() AND kind = ANY ($2::text []) ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED
)
UPDATE notices SET tries = notices.tries + 1, due_at = now() + make_interval(secs => $1 * power(2, notices.tries))
FROM next
JOIN users ON users.id = next.user_id
LEFT JOIN preferences ON preferences.user_id = next.user_id
WHERE notices.user_id = next.user_id AND notices.kind = next.kind AND notices.subject = next.subject
RETURNING notices.user_id, notices.kind, notices.subject, notices.details::text, notices.tries, users.username, users.email,
    users.is_active AND coalesce(preferences.notify_by_mail, true) AS is_wanted;

-- name: end_notice
-- The notice was sent, or is given up.
UPDATE notices SET due_at = NULL, details = NULL, sent_at = CASE WHEN $4 THEN now() END
WHERE user_id = $1 AND kind = $2 AND subject = $3;

-- name: erase_notices
-- Delete the notices.
DELETE FROM notices WHERE user_id = $1;

-- name: forget_notices
-- Notices from before this time; $2 at most.
DELETE FROM notices WHERE (user_id, kind, subject) IN (
    SELECT user_id, kind, subject FROM notices WHERE created_at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED
);

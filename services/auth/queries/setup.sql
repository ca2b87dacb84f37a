-- name: find_setup
-- What the checklist of administrator $1 is made of.
SELECT setup_facts.confirmed_registration, setup_facts.mail_tested_at,
    coalesce((SELECT setup_dismissed FROM preferences WHERE user_id = $1), false) AS is_dismissed,
    (SELECT count(*) FROM (SELECT 1 FROM users WHERE is_active AND id <> $1 LIMIT 1000) AS others) AS colleagues,
    (SELECT count(*) FROM (
        SELECT 1 FROM colleague_invitations
        WHERE accepted_at IS NULL AND withdrawn_at IS NULL AND expires_at > now() LIMIT 1000
    ) AS sent) AS invitations
FROM setup_facts;

-- name: dismiss_setup
-- Close or open the checklist of user $1.
INSERT INTO preferences (user_id, setup_dismissed) VALUES ($1, $2)
ON CONFLICT (user_id) DO UPDATE SET setup_dismissed = excluded.setup_dismissed;

-- name: confirm_registration
-- Keep what an administrator confirmed.
UPDATE setup_facts SET confirmed_registration = $1;

-- name: note_tested_mail
-- The mail server accepted a test email.
UPDATE setup_facts SET mail_tested_at = now();

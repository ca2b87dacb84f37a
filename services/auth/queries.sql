-- name: add_user
-- A new user; a taken name or address is a unique violation.
INSERT INTO users (id, username, email, password_hash)
VALUES ($1, $2, $3, $4)
RETURNING id, username, email, role, subscription_tier, is_active, created_at;

-- name: add_first_admin
-- The administrator, if there is none yet; of several starters one makes it.
INSERT INTO users (id, username, email, password_hash, role, subscription_tier)
SELECT $1, $2, $3, $4, 'admin', 'pro'
WHERE NOT EXISTS (SELECT 1 FROM users WHERE role = 'admin')
ON CONFLICT DO NOTHING;

-- name: has_admin
-- Whether anybody administers this mesh.
SELECT EXISTS (SELECT 1 FROM users WHERE role = 'admin');

-- name: find_user_by_id
-- One user.
SELECT id, username, email, role, subscription_tier, is_active, created_at, password_hash
FROM users
WHERE id = $1;

-- name: find_user_by_username
-- One user; the case of letters does not matter.
SELECT id, username, email, role, subscription_tier, is_active, created_at, password_hash
FROM users
WHERE lower(username) = lower($1);

-- name: find_user_by_email
-- One user; the case of letters does not matter.
SELECT id, username, email, role, subscription_tier, is_active, created_at, password_hash
FROM users
WHERE lower(email) = lower($1);

-- name: list_users
-- The newest users.
SELECT id, username, email, role, subscription_tier, is_active, created_at
FROM users
ORDER BY created_at DESC, id
LIMIT $1;

-- name: set_tier
-- What a user has paid for.
UPDATE users SET subscription_tier = $2 WHERE id = $1
RETURNING id, username, email, role, subscription_tier, is_active, created_at;

-- name: set_active
-- Close an account, or open it again.
UPDATE users SET is_active = $2 WHERE id = $1
RETURNING id, username, email, role, subscription_tier, is_active, created_at;

-- name: replace_password_hash
-- The same password under newer parameters; not if the password was changed meanwhile.
UPDATE users SET password_hash = $3 WHERE id = $1 AND password_hash = $2;

-- name: add_key
-- A new key; nothing if the user has $11 active ones.
INSERT INTO api_keys (
    id, user_id, key_hash, name, preview, requests_per_hour, requests_per_minute, tokens_per_minute, concurrency, budget_micro
)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10
WHERE (SELECT count(*) FROM api_keys WHERE user_id = $2 AND is_active) < $11
RETURNING id, user_id, name, preview, is_active, created_at, last_used_at,
    requests_per_hour, requests_per_minute, tokens_per_minute, concurrency, budget_micro;

-- name: find_key_by_id
-- One key.
SELECT id, user_id, name, preview, is_active, created_at, last_used_at,
    requests_per_hour, requests_per_minute, tokens_per_minute, concurrency, budget_micro
FROM api_keys
WHERE id = $1;

-- name: list_keys_named
-- A user's active keys of that name.
SELECT id, user_id, name, preview, is_active, created_at, last_used_at,
    requests_per_hour, requests_per_minute, tokens_per_minute, concurrency, budget_micro
FROM api_keys
WHERE user_id = $1 AND name = $2 AND is_active;

-- name: list_keys
-- A user's keys, the newest first, revoked ones included.
SELECT id, user_id, name, preview, is_active, created_at, last_used_at,
    requests_per_hour, requests_per_minute, tokens_per_minute, concurrency, budget_micro
FROM api_keys
WHERE user_id = $1
ORDER BY created_at DESC, id
LIMIT 1000;

-- name: revoke_key
-- End a key for ever; nothing if it has ended already.
UPDATE api_keys SET is_active = false WHERE id = $1 AND is_active
RETURNING id, user_id, name, preview, is_active, created_at, last_used_at,
    requests_per_hour, requests_per_minute, tokens_per_minute, concurrency, budget_micro;

-- name: find_owner_of_key
-- The key with this hash and the user it belongs to.
SELECT api_keys.id AS key_id, api_keys.name AS key_name, api_keys.is_active AS key_is_active,
    api_keys.requests_per_hour, api_keys.requests_per_minute, api_keys.tokens_per_minute, api_keys.concurrency, api_keys.budget_micro,
    users.id, users.username, users.role, users.subscription_tier, users.is_active
FROM api_keys
JOIN users ON users.id = api_keys.user_id
WHERE api_keys.key_hash = $1;

-- name: touch_keys
-- These keys were used; at most one write a minute for each. Who is locked is being written by another one.
UPDATE api_keys SET last_used_at = now()
WHERE id IN (
    SELECT id FROM api_keys
    WHERE id = ANY ($1::uuid []) AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')
    FOR UPDATE SKIP LOCKED
);

-- name: last_change
-- The number of the newest change; 0 before the first.
SELECT coalesce(max(sequence), 0) FROM changes;

-- name: list_changes_since
-- What a watcher that has seen change $1 has missed, beginning with $1 itself. Numbers are given out before the commit, so a
-- lower one can become visible after a higher one: the last minute comes again.
SELECT sequence, user_id FROM changes
WHERE sequence >= $1 OR at > now() - interval '1 minute'
ORDER BY sequence
LIMIT $2;

-- name: prune_changes
-- A watcher that was away for longer is told to forget everything; the newest stays, because it says where we are.
DELETE FROM changes
WHERE at < now() - interval '1 day' AND sequence < (SELECT max(sequence) FROM changes);

-- name: add_ticket
-- A new ticket.
INSERT INTO tickets (id, public_key, role, owner, labels, needs_approval, uses, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8);

-- name: list_tickets_called
-- The ticket of this id, or those whose ids begin like this; two are enough to see that it is not one.
SELECT tickets.*, coalesce(users.username, '') AS owner_name
FROM tickets
LEFT JOIN users ON users.id = tickets.owner
WHERE starts_with(tickets.id, $1)
LIMIT 2;

-- name: list_tickets
-- The newest tickets.
SELECT tickets.*, coalesce(users.username, '') AS owner_name
FROM tickets
LEFT JOIN users ON users.id = tickets.owner
ORDER BY tickets.created_at DESC, tickets.id
LIMIT $1;

-- name: revoke_ticket
-- End a ticket; the nodes that came in with it stay.
UPDATE tickets SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL;

-- name: use_ticket
-- One use of ticket $1 for node $2, and its row. Without a row it must be rolled back: the use was counted for nothing.
WITH ticket AS (
    UPDATE tickets SET used = used + 1
    WHERE id = $1 AND revoked_at IS NULL AND expires_at > $5 AND used < uses
        AND NOT EXISTS (SELECT 1 FROM nodes WHERE nodes.id = $2 AND (ticket_id = $1 OR state = 'revoked' OR nodes.role = 'auth'))
    RETURNING id, role, owner, needs_approval
)
INSERT INTO nodes (id, role, state, name, owner, labels, ticket_id)
SELECT $2, ticket.role, CASE WHEN ticket.needs_approval THEN 'pending' ELSE 'active' END, $3, ticket.owner, $4, ticket.id
FROM ticket
-- The same machine with another ticket. The conditions again, because the row may be newer than what was looked at above.
ON CONFLICT (id) DO UPDATE SET
    role = EXCLUDED.role, state = EXCLUDED.state, name = EXCLUDED.name, owner = EXCLUDED.owner, labels = EXCLUDED.labels,
    ticket_id = EXCLUDED.ticket_id, joined_at = now(), idle_since = now()
WHERE nodes.state <> 'revoked' AND nodes.role <> 'auth' AND nodes.ticket_id IS DISTINCT FROM EXCLUDED.ticket_id
RETURNING id;

-- name: list_nodes_called
-- The node of this id, or those whose ids begin like this; two are enough to see that it is not one.
SELECT nodes.*, coalesce(users.username, '') AS owner_name
FROM nodes
LEFT JOIN users ON users.id = nodes.owner
WHERE starts_with(nodes.id, $1)
LIMIT 2;

-- name: list_nodes
-- Those who wait for approval first, then the newest; the revoked last.
SELECT nodes.*, coalesce(users.username, '') AS owner_name
FROM nodes
LEFT JOIN users ON users.id = nodes.owner
ORDER BY array_position(ARRAY['pending', 'active', 'revoked'], nodes.state), nodes.joined_at DESC, nodes.id
LIMIT $1;

-- name: add_vouched_node
-- A node that NATS vouches for: of the house, and active, unless it was revoked; then nothing.
INSERT INTO nodes (id, role) VALUES ($1, $2)
ON CONFLICT (id) DO UPDATE SET role = EXCLUDED.role, state = 'active', idle_since = now()
WHERE nodes.state <> 'revoked'
RETURNING id;

-- name: note_certified
-- A certificate is about to be given out; nothing if the node is not active any more.
UPDATE nodes SET renewed_at = now(), idle_since = now(), certified_until = $2 WHERE id = $1 AND state = 'active';

-- name: approve_node
-- Let a waiting node in; nothing if it does not wait.
UPDATE nodes SET state = 'active', idle_since = now() WHERE id = $1 AND state = 'pending';

-- name: revoke_node
-- Cut a node off for ever; triggers number the list and begin the epoch. Nothing if it was revoked before.
UPDATE nodes SET state = 'revoked', reason = $2 WHERE id = $1 AND state <> 'revoked';

-- name: read_mesh_state
-- What the revocation list is made from, as of one moment: its number, and at most $2 nodes that were revoked after $1.
SELECT number, epoch, epoch_changed_at, ARRAY(
    SELECT id FROM nodes WHERE state = 'revoked' AND revoked_at > $1 ORDER BY revoked_at DESC LIMIT $2
) AS revoked
FROM mesh_state;

-- name: rotate_epoch
-- A new epoch, if the one of now is known to a revoked node and is an hour old.
UPDATE mesh_state SET
    epoch = epoch + 1, epoch_changed_at = now(), number = greatest(number + 1, extract(epoch FROM now())::bigint)
WHERE last_revoked_at > epoch_changed_at AND epoch_changed_at <= now() - interval '1 hour';

-- name: raise_list_number
-- The list goes on above number $1, if that was given out and is not known here any more.
UPDATE mesh_state SET number = greatest($1 + 1, extract(epoch FROM now())::bigint) WHERE number < $1;

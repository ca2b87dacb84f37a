-- name: add_ticket
-- Add a ticket.
INSERT INTO tickets (id, public_key, role, owner, labels, needs_approval, uses, expires_at, active_most, networks, model, accept_models)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);

-- name: add_listed_ticket
-- Add a ticket of the operator's list, unless it has a row.
INSERT INTO tickets (id, public_key, role, labels, needs_approval, uses, expires_at, active_most, networks)
VALUES ($1, $2, $3, '{}', false, $4, to_timestamp($5), $6, $7)
ON CONFLICT DO NOTHING;

-- name: count_good_tickets
-- How many tickets of this owner are still usable.
SELECT count(*) FROM tickets WHERE owner = $1 AND revoked_at IS NULL AND expires_at > now() AND used < uses;

-- name: list_tickets_called
-- The tickets with this id or prefix; two are enough to see that it is ambiguous. Of owner $2, or of all for null.
SELECT tickets.*, coalesce(users.username, '') AS owner_name, active_nodes(tickets.id) AS active
FROM tickets
LEFT JOIN users ON users.id = tickets.owner
WHERE starts_with(tickets.id, $1) AND ($2::uuid IS NULL OR tickets.owner = $2)
LIMIT 2;

-- name: list_tickets
-- The newest tickets of owner $2, or of all for null.
SELECT tickets.*, coalesce(users.username, '') AS owner_name, active_nodes(tickets.id) AS active
FROM tickets
LEFT JOIN users ON users.id = tickets.owner
WHERE $2::uuid IS NULL OR tickets.owner = $2
ORDER BY tickets.created_at DESC, tickets.id
LIMIT $1;

-- name: revoke_ticket
-- Revoke a ticket; nodes that joined with it stay.
UPDATE tickets SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL;

-- name: end_ticket_soon
-- Let a ticket that was replaced end $2 from now.
UPDATE tickets SET expires_at = least(expires_at, now() + $2::interval) WHERE id = $1;

-- name: revoke_nodes_of_ticket
-- Revoke the nodes that joined with a ticket; triggers number the list.
UPDATE nodes SET state = 'revoked', reason = $2 WHERE ticket_id = $1 AND state <> 'revoked' RETURNING id, role;

-- name: note_ticket_network
-- Note a network from which ticket $1 is used; whether it was used from others before. No row if the network is known.
UPDATE tickets SET seen_networks = seen_networks || $2::text
WHERE id = $1 AND $2 <> ALL (seen_networks) AND cardinality(seen_networks) < 1000
RETURNING cardinality(seen_networks) > 1;

-- name: lock_ticket
-- Wait for other uses of this ticket, so that the next statement counts them.
SELECT id FROM tickets WHERE id = $1 FOR UPDATE;

-- name: use_ticket
-- Count a use of ticket $1 by node $2, and write the node. Without a row the caller must roll back.
WITH ticket AS (
    UPDATE tickets SET used = used + 1
    WHERE id = $1 AND revoked_at IS NULL AND expires_at > $5 AND used < uses
        AND (active_most IS NULL OR active_most > active_nodes($1) OR EXISTS (SELECT 1 FROM nodes WHERE nodes.id = $2 AND ticket_id = $1))
        AND NOT EXISTS (SELECT 1 FROM nodes WHERE nodes.id = $2 AND (ticket_id = $1 OR state = 'revoked' OR nodes.role = 'auth'))
    RETURNING id, role, owner, needs_approval
)
INSERT INTO nodes (id, role, state, name, owner, labels, ticket_id)
SELECT $2, ticket.role, CASE WHEN ticket.needs_approval THEN 'pending' ELSE 'active' END, $3, ticket.owner, $4, ticket.id
FROM ticket
-- The same machine with another ticket. The conditions are repeated, because the row may be newer than the one read above.
ON CONFLICT (id) DO UPDATE SET
    role = EXCLUDED.role, state = EXCLUDED.state, name = EXCLUDED.name, owner = EXCLUDED.owner, labels = EXCLUDED.labels,
    ticket_id = EXCLUDED.ticket_id, joined_at = now(), idle_since = now(), heard_at = NULL, left_at = NULL
WHERE nodes.state <> 'revoked' AND nodes.role <> 'auth' AND nodes.ticket_id IS DISTINCT FROM EXCLUDED.ticket_id
RETURNING id;

-- name: add_sibling
-- Add node $2 of the machine of node $1, which may have $4; no row if it may not. The same node may come again.
INSERT INTO nodes (id, role, state, name, owner, labels, ticket_id, machine)
SELECT $2, role, state, $3, owner, labels, ticket_id, id FROM nodes
WHERE id = $1 AND role = 'worker' AND state = 'active' AND machine IS NULL AND id <> $2
    AND (SELECT count(*) FROM nodes AS sibling WHERE sibling.machine = $1 AND sibling.state <> 'revoked' AND sibling.id <> $2) < $4
ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name, idle_since = now()
WHERE nodes.machine = $1 AND nodes.state = 'active'
RETURNING id;

-- name: list_nodes_called
-- The nodes with this id or prefix; two are enough to see that it is ambiguous. Of owner $2, or of all for null.
SELECT nodes.*, coalesce(users.username, '') AS owner_name
FROM nodes
LEFT JOIN users ON users.id = nodes.owner
WHERE starts_with(nodes.id, $1) AND ($2::uuid IS NULL OR nodes.owner = $2)
LIMIT 2;

-- name: list_nodes
-- Nodes that wait for approval first, then the newest; revoked ones last. Of owner $2, or of all for null.
SELECT nodes.*, coalesce(users.username, '') AS owner_name
FROM nodes
LEFT JOIN users ON users.id = nodes.owner
WHERE $2::uuid IS NULL OR nodes.owner = $2
ORDER BY array_position(ARRAY['pending', 'active', 'revoked'], nodes.state), nodes.joined_at DESC, nodes.id
LIMIT $1;

-- name: find_node_owner
-- The role of a user whose account is open, and the user's organizations.
SELECT role, ARRAY(
    SELECT organisation_id FROM organisation_members WHERE user_id = users.id ORDER BY organisation_id LIMIT 1000
) AS organisations
FROM users WHERE id = $1 AND is_active;

-- name: add_vouched_node
-- Make a node active that NATS has authenticated; no row if it was revoked.
INSERT INTO nodes (id, role) VALUES ($1, $2)
ON CONFLICT (id) DO UPDATE SET role = EXCLUDED.role, state = 'active', idle_since = now()
WHERE nodes.state <> 'revoked'
RETURNING id;

-- name: list_known_nodes
-- Up to $1 nodes that are not revoked, in any order.
SELECT id FROM nodes WHERE state <> 'revoked' LIMIT $1;

-- name: find_revoked_nodes
-- Which of these nodes were revoked, at any time.
SELECT id FROM nodes WHERE id = ANY($1) AND state = 'revoked';

-- name: note_heard
-- Nodes with a ticket that are announcing themselves.
UPDATE nodes SET heard_at = now(), left_at = NULL
WHERE id = ANY($1) AND ticket_id IS NOT NULL AND (heard_at IS NULL OR heard_at < now() - interval '15 seconds');

-- name: note_left
-- A node that stopped in order frees the place of its ticket.
UPDATE nodes SET left_at = now() WHERE id = $1 AND ticket_id IS NOT NULL;

-- name: forget_left_nodes
-- Delete replicas that were silent for an hour: tickets with places make a new one for each start.
DELETE FROM nodes USING tickets
WHERE tickets.id = nodes.ticket_id AND tickets.active_most > 1 AND nodes.state = 'active'
    AND coalesce(nodes.heard_at, nodes.joined_at) < now() - interval '1 hour';

-- name: note_certified
-- Record a new certificate; no row if the node is no longer active.
UPDATE nodes SET renewed_at = now(), idle_since = now(), certified_until = $2 WHERE id = $1 AND state = 'active';

-- name: approve_node
-- Approve a node; no row if it does not wait for approval.
UPDATE nodes SET state = 'active', idle_since = now() WHERE id = $1 AND state = 'pending';

-- name: revoke_node
-- Revoke a node, and the others of its machine; triggers number the list and begin a new epoch. No row if it was revoked before.
UPDATE nodes SET state = 'revoked', reason = $2 WHERE (id = $1 OR machine = $1) AND state <> 'revoked';

-- name: read_mesh_state
-- What the revocation list is made from, at one moment: its number, and at most $2 nodes that were revoked after $1.
SELECT number, epoch, epoch_changed_at, ARRAY(
    SELECT id FROM nodes WHERE state = 'revoked' AND revoked_at > $1 ORDER BY revoked_at DESC LIMIT $2
) AS revoked
FROM mesh_state;

-- name: rotate_epoch
-- Begin a new epoch, if a revoked node knows the current one and it is an hour old.
UPDATE mesh_state SET
    epoch = epoch + 1, epoch_changed_at = now(), number = greatest(number + 1, extract(epoch FROM now())::bigint)
WHERE last_revoked_at > epoch_changed_at AND epoch_changed_at <= now() - interval '1 hour';

-- name: raise_list_number
-- Raise the list's number above $1, if that was published and is no longer known here.
UPDATE mesh_state SET number = greatest($1 + 1, extract(epoch FROM now())::bigint) WHERE number < $1;

-- name: list_idle_nodes
-- Nodes that were silent for $1 days and are not revoked.
SELECT nodes.id, nodes.name, nodes.role, nodes.state, nodes.idle_since, coalesce(users.username, '') AS owner_name
FROM nodes
LEFT JOIN users ON users.id = nodes.owner
WHERE nodes.state <> 'revoked' AND nodes.idle_since < now() - make_interval(days => $1)
ORDER BY nodes.idle_since, nodes.id
LIMIT $2;

-- name: read_gateway_release
-- Return the oldest release whose gateways may answer requests.
SELECT needed FROM gateway_release;

-- name: write_gateway_release
-- Keep another oldest release whose gateways may answer requests.
UPDATE gateway_release SET needed = $1 WHERE needed <> $1;

-- name: lock_audit_head
-- The last row of a chain; locks the chain until the end of the transaction.
SELECT sequence, hash FROM audit_heads WHERE chain = $1 FOR UPDATE;

-- name: ensure_audit_head
-- Create the head of an empty chain.
INSERT INTO audit_heads (chain, sequence, hash) VALUES ($1, 0, $2) ON CONFLICT DO NOTHING;

-- name: add_audit_rows
-- Append rows of one chain with their personal parts, and update the head.
WITH added AS (
    SELECT
        $1::text AS chain,
        $2::uuid AS tenant_id,
        sequence,
        at,
        actor,
        action,
        result,
        target,
        request_id,
        times,
        details_digest,
        prev_hash,
        hash,
        salt,
        address,
        details
    FROM
        unnest(
            $3::bigint [],
            $4::timestamptz [],
            $5::uuid [],
            $6::text [],
            $7::text [],
            $8::text [],
            $9::text [],
            $10::integer [],
            $11::bytea [],
            $12::bytea [],
            $13::bytea [],
            $14::bytea [],
            $15::text [],
            $16::text []
        ) AS row (
            sequence, at, actor, action, result, target, request_id, times, details_digest, prev_hash, hash, salt, address, details
        )
),

logged AS (
    INSERT INTO audit_log (
        chain, tenant_id, sequence, at, actor, action, result, target, request_id, times, details_digest, prev_hash, hash
    )
    SELECT
        chain,
        tenant_id,
        sequence,
        at,
        actor,
        action,
        result,
        target,
        request_id,
        times,
        details_digest,
        prev_hash,
        hash
    FROM added
),

kept_apart AS (
    INSERT INTO audit_details (chain, tenant_id, sequence, at, actor, salt, address, details)
    SELECT
        chain,
        tenant_id,
        sequence,
        at,
        actor,
        salt,
        address,
        details::jsonb
    FROM added
    WHERE length(details_digest) > 0
)

UPDATE audit_heads
SET sequence = $17, hash = $18
WHERE chain = $1;

-- name: list_audit_rows
-- The newest matching rows, and all that share the time of the last one, so that a list can continue before it.
SELECT
    l.*,
    d.salt,
    d.address,
    d.details,
    u.username
FROM audit_log AS l
LEFT JOIN audit_details AS d ON l.chain = d.chain AND l.sequence = d.sequence
LEFT JOIN users AS u ON l.actor = u.id
WHERE
    ($1::text IS NULL OR l.chain = $1)
    AND ($2::uuid IS NULL OR l.actor = $2)
    -- `key` also finds `key.create`.
    AND ($3::text IS NULL OR l.action = $3 OR starts_with(l.action, $3 || '.'))
    AND ($4::text IS NULL OR l.result = $4)
    AND ($5::timestamptz IS NULL OR l.at >= $5)
    AND ($6::timestamptz IS NULL OR l.at < $6)
ORDER BY l.at DESC
FETCH FIRST ($7::bigint) ROWS WITH TIES;

-- name: read_audit_chain
-- The next rows of a chain, up to a given one.
SELECT
    l.*,
    d.salt,
    d.address,
    d.details,
    u.username
FROM audit_log AS l
LEFT JOIN audit_details AS d ON l.chain = d.chain AND l.sequence = d.sequence
LEFT JOIN users AS u ON l.actor = u.id
WHERE l.chain = $1 AND l.sequence > $2 AND l.sequence <= $3
ORDER BY l.sequence
LIMIT $4;

-- name: list_audit_chains
-- Every chain with a head or a row; a chain without a head was tampered with.
WITH RECURSIVE found AS (
    (SELECT chain FROM audit_log ORDER BY chain LIMIT 1)
    UNION ALL
    -- Takes one index step per chain instead of one per row.
    SELECT (SELECT l.chain FROM audit_log AS l WHERE l.chain > f.chain ORDER BY l.chain LIMIT 1) FROM found AS f WHERE f.chain IS NOT NULL
)

SELECT chain FROM found WHERE chain IS NOT NULL
UNION
SELECT chain FROM audit_heads WHERE sequence > 0
ORDER BY chain;

-- name: find_audit_head
-- What a chain's head says, and the last row that exists, at the same moment.
SELECT
    (SELECT h.sequence FROM audit_heads AS h WHERE h.chain = $1) AS sequence,
    (SELECT h.hash FROM audit_heads AS h WHERE h.chain = $1) AS hash,
    (SELECT max(l.sequence) FROM audit_log AS l WHERE l.chain = $1) AS last_row;

-- name: find_audit_row_since
-- The first row of a chain since this time; times need not increase with the numbers.
SELECT min(sequence) AS sequence FROM audit_log WHERE chain = $1 AND at >= $2;

-- name: list_unanchored_heads
-- Heads of chains that have grown since their last anchor.
SELECT h.chain, h.sequence, h.hash FROM audit_heads AS h
WHERE
    h.sequence > 0
    AND NOT EXISTS (
        SELECT FROM audit_anchors AS a
        WHERE a.chain = h.chain AND a.sequence = h.sequence AND a.hash = h.hash
    )
ORDER BY h.chain;

-- name: add_audit_anchors
-- Add anchors, unless another replica has just done so.
INSERT INTO audit_anchors (chain, sequence, hash, anchor)
SELECT chain, sequence, hash, anchor
FROM unnest($1::text [], $2::bigint [], $3::bytea [], $4::text []) AS row (chain, sequence, hash, anchor)
ON CONFLICT DO NOTHING;

-- name: list_anchors_after
-- Anchors by number, oldest first.
SELECT number, anchor FROM audit_anchors WHERE number > $1 ORDER BY number LIMIT $2;

-- name: last_anchor_number
-- The number of the newest anchor, or 0.
SELECT coalesce(max(number), 0) AS number FROM audit_anchors;

-- name: list_anchors_of_chain
-- Every anchor of one chain.
SELECT anchor FROM audit_anchors WHERE chain = $1 ORDER BY sequence;

-- name: list_anchored_chains
-- Every chain with an anchor.
SELECT DISTINCT chain FROM audit_anchors ORDER BY chain;

-- name: shred_audit_details_before
-- Erase a batch of the oldest personal parts.
DELETE FROM audit_details
WHERE (chain, sequence) IN (SELECT d.chain, d.sequence FROM audit_details AS d WHERE d.at < $1 ORDER BY d.at LIMIT $2);

-- name: shred_audit_details_of
-- Erase the personal parts of a user's acts.
DELETE FROM audit_details WHERE actor = $1;

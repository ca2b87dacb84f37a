-- name: find_waiting_items
-- Find what was put aside of these items, and whether this caller has it now: it is due, and nobody else is at it.
WITH claimed AS (
    UPDATE deferred_items SET next_at = clock_timestamp() + interval '10 minutes' WHERE (kind, id) IN (
        SELECT kind, id FROM deferred_items WHERE kind = $1 AND id = ANY($2::text[]) AND next_at <= now() FOR UPDATE SKIP LOCKED
    )
    RETURNING id
)
SELECT id, id IN (SELECT id FROM claimed) AS is_claimed FROM deferred_items WHERE kind = $1 AND id = ANY($2::text[]);

-- name: take_due_item
-- Take what was put aside and is due first, for 10 minutes, except what another caller takes.
UPDATE deferred_items SET next_at = clock_timestamp() + interval '10 minutes' WHERE (kind, id) = (
    SELECT kind, id FROM deferred_items WHERE kind = $1 AND next_at <= now() ORDER BY next_at LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING id;

-- name: defer_item
-- Put an item aside after a failure, for 10 seconds, 20, 40 and so on to an hour; after $4 tries until somebody retries it.
INSERT INTO deferred_items AS items (kind, id, tries, next_at, error) VALUES ($1, $2, 1, clock_timestamp() + interval '10 seconds', $3)
ON CONFLICT (kind, id) DO UPDATE SET
    tries = items.tries + 1,
    next_at = CASE
        WHEN items.tries + 1 < $4::integer THEN clock_timestamp() + least(10 * 2 ^ items.tries, 3600) * interval '1 second'
    END,
    error = excluded.error
RETURNING tries;

-- name: forget_deferred
-- Forget items that have succeeded.
DELETE FROM deferred_items WHERE kind = $1 AND id = ANY($2::text[]);

-- name: forget_gone_items
-- Forget items that have been due for a day: they don't exist any more.
DELETE FROM deferred_items WHERE next_at < now() - interval '1 day';

-- name: count_stuck_items
-- Count the items that rest, and all of the kinds $1.
SELECT kind, count(*) AS items FROM deferred_items WHERE next_at IS NULL OR kind = ANY($1::text[]) GROUP BY kind;

-- name: list_deferred_items
-- List what was put aside, the oldest first.
SELECT * FROM deferred_items WHERE $1::text IS NULL OR kind = $1 ORDER BY since, kind, id LIMIT $2;

-- name: retry_deferred_items
-- Let items be tried again now: one, all of a kind, or all.
UPDATE deferred_items SET tries = 0, next_at = clock_timestamp() WHERE ($1::text IS NULL OR kind = $1) AND ($2::text IS NULL OR id = $2);

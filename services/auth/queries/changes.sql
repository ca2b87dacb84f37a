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

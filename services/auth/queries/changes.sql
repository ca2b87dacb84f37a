-- name: last_change
-- The number of the newest change, or 0.
SELECT coalesce(max(sequence), 0) FROM changes;

-- name: list_changes_since
-- What a watcher missed after change $1, and $1 itself. Numbers are assigned before the commit, so a lower one can appear after a higher
-- one: the last minute is repeated.
SELECT sequence, user_id FROM changes
WHERE sequence >= $1 OR at > now() - interval '1 minute'
ORDER BY sequence
LIMIT $2;

-- name: prune_changes
-- A watcher that was disconnected for longer must forget everything. The newest change stays, because it marks the position.
DELETE FROM changes
WHERE at < now() - interval '1 day' AND sequence < (SELECT max(sequence) FROM changes);

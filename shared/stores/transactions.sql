-- name: bind
-- See only one tenant's rows in this transaction.
SELECT set_config('aimesh.tenant', $1, true);

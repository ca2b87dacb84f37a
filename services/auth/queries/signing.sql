-- name: lock_signing_keys
-- Lock the keys against other writers until the end of the transaction.
LOCK TABLE signing_keys IN SHARE ROW EXCLUSIVE MODE;

-- name: list_signing_keys
-- Every key, in signing order.
SELECT kid, sealed_private, epoch, made_at, signs_from, retired_at FROM signing_keys ORDER BY signs_from, kid;

-- name: add_signing_key
-- Add a key.
INSERT INTO signing_keys (kid, public_x, sealed_private, epoch, made_at, signs_from) VALUES ($1, $2, $3, $4, $5, $6);

-- name: retire_signing_key
-- Set when the next key begins to sign.
UPDATE signing_keys SET retired_at = $2 WHERE kid = $1;

-- name: reseal_signing_key
-- Store the key under another DATA_KEY.
UPDATE signing_keys SET sealed_private = $2 WHERE kid = $1;

-- name: drop_signing_keys
-- Drop keys; their tokens become invalid.
DELETE FROM signing_keys WHERE kid = any($1::text []);

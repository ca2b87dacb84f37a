-- name: lock_signing_keys
-- Nobody else changes them before the transaction ends; reading goes on.
LOCK TABLE signing_keys IN SHARE ROW EXCLUSIVE MODE;

-- name: list_signing_keys
-- Every key, in the order in which they sign.
SELECT kid, sealed_private, epoch, made_at, signs_from, retired_at FROM signing_keys ORDER BY signs_from, kid;

-- name: add_signing_key
-- A key that signs from some time on.
INSERT INTO signing_keys (kid, public_x, sealed_private, epoch, made_at, signs_from) VALUES ($1, $2, $3, $4, $5, $6);

-- name: retire_signing_key
-- The next one signs from then on.
UPDATE signing_keys SET retired_at = $2 WHERE kid = $1;

-- name: reseal_signing_key
-- The same key, under another DATA_KEY.
UPDATE signing_keys SET sealed_private = $2 WHERE kid = $1;

-- name: drop_signing_keys
-- Forget keys; their tokens are good no more.
DELETE FROM signing_keys WHERE kid = any($1::text []);

-- A request that its caller withdrew at any gateway.
SET LOCAL lock_timeout = '1s';

-- The request that its caller wants no more. Not a flag: a gateway that takes the key over runs another request, which nobody withdrew.
ALTER TABLE idempotency_keys ADD COLUMN withdrawn_request uuid;

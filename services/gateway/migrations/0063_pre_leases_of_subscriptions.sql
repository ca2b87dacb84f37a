-- No row of a subscription is locked while auth is asked about it.
SET LOCAL lock_timeout = '1s';

-- Until then, a gateway tells auth of its plan, or renews it.
ALTER TABLE subscriptions ADD COLUMN taken_until timestamptz NOT NULL DEFAULT '-infinity';

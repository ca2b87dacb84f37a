-- Only what we ordered at a payment provider is followed, and it is read before its rows are locked.
SET LOCAL lock_timeout = '1s';

-- The subscription that began with it.
ALTER TABLE payment_orders ADD COLUMN subscription varchar(255);
-- An administrator has said whose payment it is.
ALTER TABLE payment_orders ADD COLUMN is_adopted boolean NOT NULL DEFAULT false;
CREATE UNIQUE INDEX payment_orders_of_objects ON payment_orders (provider, object_id) WHERE object_id IS NOT NULL;
CREATE UNIQUE INDEX payment_orders_of_subscriptions ON payment_orders (provider, subscription) WHERE subscription IS NOT NULL;

-- Grows with each write, so that who has read the provider meanwhile knows that it was too early.
ALTER TABLE subscriptions ADD COLUMN version bigint NOT NULL DEFAULT 0;

-- Until then, a gateway bills it. It holds no lock meanwhile.
ALTER TABLE owed ADD COLUMN taken_until timestamptz NOT NULL DEFAULT '-infinity';

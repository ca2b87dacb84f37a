-- Exported usage says whether a request ran behind live ones, at the price of batches.
SET LOCAL lock_timeout = '1s';

ALTER TABLE usage_outbox ADD COLUMN is_batch boolean NOT NULL DEFAULT false;

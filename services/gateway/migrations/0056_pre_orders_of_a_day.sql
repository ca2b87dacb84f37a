-- An account orders and changes plans only so often.
SET LOCAL lock_timeout = '1s';

-- Orders and changes of plans by the account, on that day in UTC.
ALTER TABLE subscriptions ADD COLUMN changes smallint NOT NULL DEFAULT 0, ADD COLUMN changes_on date;

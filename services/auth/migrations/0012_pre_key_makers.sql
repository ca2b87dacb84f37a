-- Which key made a key, so that all that a leaked one has made can be revoked with it. Null for one that a login made, and for those from
-- before.

ALTER TABLE api_keys ADD COLUMN made_by uuid;

CREATE INDEX api_keys_by_maker ON api_keys (made_by) WHERE made_by IS NOT NULL;

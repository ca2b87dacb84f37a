-- As 0048 says: gateways of release 0.3 are gone, and so is what only they read.
SET LOCAL lock_timeout = '1s';

DROP TRIGGER plans_are_kept ON config_versions;
DROP FUNCTION keep_plan();

UPDATE config_versions SET body = body - 'credits' WHERE kind = 'plan' AND body ? 'credits';

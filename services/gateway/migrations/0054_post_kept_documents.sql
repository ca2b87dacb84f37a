-- As 0053 says: gateways of release 0.3 are gone.
SET LOCAL lock_timeout = '1s';

DROP TRIGGER documents_are_kept ON config_versions;
DROP FUNCTION keep_document();

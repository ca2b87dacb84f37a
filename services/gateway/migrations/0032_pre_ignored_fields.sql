-- The fields of a request's body that had no effect, without their values.
SET LOCAL lock_timeout = '1s';

ALTER TABLE request_logs ADD COLUMN ignored_fields varchar(500);

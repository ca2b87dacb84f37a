-- The path of the field for which a request was refused, without its value.
SET LOCAL lock_timeout = '1s';

ALTER TABLE request_logs ADD COLUMN error_field varchar(100);

-- name: read_log_head_of_auth
-- The newest line of the recovery log that the database knows.
SELECT max(number) FROM auth.recovery_log;

-- name: read_log_head_of_gateway
-- The newest line of the recovery log that the database knows.
SELECT max(number) FROM gateway.recovery_log;

-- name: count_audit_rows
-- Count the rows of all chains of the audit log, by their heads.
SELECT sum(sequence) FROM auth.audit_heads;

-- name: read_audit_head
-- The newest row of a chain of the audit log.
SELECT sequence FROM auth.audit_heads WHERE chain = $1;

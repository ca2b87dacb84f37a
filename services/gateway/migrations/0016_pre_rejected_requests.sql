-- Requests whose caller has to change something are `rejected`, and no errors. The lock is held for a change of the catalog alone: what the
-- narrower constraint let in needs no second look.
SET LOCAL lock_timeout = '200ms';

ALTER TABLE request_logs DROP CONSTRAINT request_logs_status_check;
ALTER TABLE request_logs ADD CONSTRAINT request_logs_status_check
    CHECK (status IN ('success', 'error', 'timeout', 'cancelled', 'limited', 'rejected')) NOT VALID;

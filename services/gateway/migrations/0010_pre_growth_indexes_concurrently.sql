-- Indexes that the partitions will share. They are built before the tables become partitions, because only a plain table can get an index
-- without a lock that stops writers. An attempt that was cut off leaves an invalid index behind, so each is dropped first.

-- One for each filter of `list_requests`.
DROP INDEX CONCURRENTLY IF EXISTS request_logs_of_status;
CREATE INDEX CONCURRENTLY request_logs_of_status ON request_logs (tenant_id, status, created_at DESC);
DROP INDEX CONCURRENTLY IF EXISTS request_logs_of_model;
CREATE INDEX CONCURRENTLY request_logs_of_model ON request_logs (tenant_id, model_used, created_at DESC);
DROP INDEX CONCURRENTLY IF EXISTS request_logs_of_key;
CREATE INDEX CONCURRENTLY request_logs_of_key ON request_logs (tenant_id, api_key_id, created_at DESC);
-- Rows come about in the order of their time. Unlike the index that it replaces, this one has no order that a page could be read in, so a
-- page of one tenant never reads the rows of all others.
DROP INDEX CONCURRENTLY IF EXISTS request_logs_by_time;
CREATE INDEX CONCURRENTLY request_logs_by_time ON request_logs USING brin (created_at) WITH (pages_per_range = 32, autosummarize = on);
DROP INDEX CONCURRENTLY IF EXISTS request_logs_by_age;

-- What was paid since a checkpoint.
DROP INDEX CONCURRENTLY IF EXISTS reservations_paid;
CREATE INDEX CONCURRENTLY reservations_paid ON reservations (ended_at) WHERE settled_micro > 0;
-- Entries are only ever appended, in the order of their time.
DROP INDEX CONCURRENTLY IF EXISTS entries_by_time;
CREATE INDEX CONCURRENTLY entries_by_time ON entries USING brin (at) WITH (pages_per_range = 32, autosummarize = on);

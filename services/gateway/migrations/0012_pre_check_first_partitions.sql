-- The second step, which reads all rows and stops nobody: the guard learns the entries from before its trigger, and PostgreSQL checks the
-- bounds of the first partitions, so that attaching them needs no look at the rows.
INSERT INTO entry_keys (transfer, kind, account) SELECT transfer, kind, account FROM entries ON CONFLICT DO NOTHING;
ALTER TABLE request_logs VALIDATE CONSTRAINT request_logs_bound;
ALTER TABLE reservations VALIDATE CONSTRAINT reservations_bound;
ALTER TABLE entries VALIDATE CONSTRAINT entries_bound;

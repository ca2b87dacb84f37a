-- Only what has changed is read for the files beside the recovery log, and everything by day.
SET LOCAL lock_timeout = '1s';

ALTER TABLE usage_sink_accounts
    -- The last transaction that changed it.
    ADD COLUMN changed_by bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
    DROP CONSTRAINT usage_sink_accounts_pkey,
    ADD PRIMARY KEY (since, sink, owner, is_kept);

CREATE INDEX usage_sink_accounts_by_change ON usage_sink_accounts (changed_by);

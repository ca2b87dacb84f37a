-- What each receiver of exported usage has acknowledged, by account and day, for the file beside the recovery log; and, in a database that
-- was restored, what that file says it had acknowledged before.
SET LOCAL lock_timeout = '1s';

CREATE TABLE usage_sink_accounts (
    sink varchar(40) NOT NULL,
    owner uuid NOT NULL,
    -- The day of the requests in UTC; on the day of a restore, the restore itself for those that came after it.
    since timestamptz NOT NULL,
    -- False: as this database knows it. True: as the file says, which knew of more.
    is_kept boolean NOT NULL DEFAULT false,
    -- Requests and refunds.
    events bigint NOT NULL,
    tokens bigint NOT NULL,
    uncovered_tokens bigint NOT NULL,
    cost_micro bigint NOT NULL,
    acknowledged_at timestamptz NOT NULL DEFAULT now(),
    -- When the file was read.
    found_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sink, owner, since, is_kept)
);

CREATE INDEX usage_sink_accounts_kept ON usage_sink_accounts (sink) WHERE is_kept;

ALTER TABLE usage_sink_accounts ENABLE ROW LEVEL SECURITY;
ALTER TABLE usage_sink_accounts FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON usage_sink_accounts USING (sees(owner));

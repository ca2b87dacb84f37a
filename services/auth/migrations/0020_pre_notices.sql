-- Emails about an account that its user may switch off (preferences.notify_by_mail). A row is written before its mail is sent, so that of
-- several replicas one sends it, and a mail server that is down delays it.
CREATE TABLE notices (
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    kind varchar(20) NOT NULL,
    -- What it is about: each thing is mailed once.
    subject varchar(100) NOT NULL,
    -- What the mail says; null once it is sent or given up.
    details jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- The next try; null once it is sent or given up.
    due_at timestamptz DEFAULT now(),
    tries integer NOT NULL DEFAULT 0,
    sent_at timestamptz,
    PRIMARY KEY (user_id, kind, subject)
);

CREATE INDEX notices_due ON notices (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX notices_by_time ON notices (created_at);

ALTER TABLE notices ENABLE ROW LEVEL SECURITY;
ALTER TABLE notices FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON notices USING (sees(user_id));

-- How far the keys were searched, by time of expiry, so that each round reads only those that it has not seen.
CREATE TABLE notice_scans (
    kind varchar(20) PRIMARY KEY,
    until timestamptz NOT NULL,
    last_id uuid NOT NULL
);

INSERT INTO notice_scans (kind, until, last_id) VALUES ('key_expires', now(), '00000000-0000-0000-0000-000000000000');

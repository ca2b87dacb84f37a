-- One replica leads: it evaluates the rules and tells people. Its rows in `alarms` have the node `leader`; those of other nodes are from
-- replicas before 0.2, and go when one of the new ones leads.
ALTER TABLE alarms ADD COLUMN owed text[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN alarms.owed IS 'Ways (webhook, mail) that have not taken the last news of it yet.';

-- What the next leader goes on with.
CREATE TABLE leader_state (
    -- leader: which process led last. workers: those that were there, JSON. window: how counters grew, compressed.
    name text PRIMARY KEY,
    at timestamptz NOT NULL,
    body bytea NOT NULL
);

-- The table `attendance` stays for replicas before 0.2.
INSERT INTO leader_state (name, at, body)
SELECT 'workers', max(held_at), convert_to(jsonb_agg(jsonb_build_object('node', node, 'path', path, 'gone_at', gone_at, 'why', why))::text, 'UTF8')
FROM (SELECT DISTINCT ON (node) * FROM attendance ORDER BY node, held_at DESC) AS newest
HAVING count(*) > 0;

-- Work that nobody waits for. A job has lines; a line is one request, and ends in one result.
SET LOCAL lock_timeout = '1s';

CREATE TABLE jobs (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    user_id uuid NOT NULL,
    key_id uuid,
    kind varchar(10) NOT NULL,
    is_live boolean NOT NULL,
    endpoint varchar(100) NOT NULL,
    -- Null until the first line is read.
    model varchar(200),
    price_id bigint,
    state varchar(12) NOT NULL,
    -- What it becomes once its files are written.
    outcome varchar(12),
    -- Why it doesn't move, and until when.
    waiting text,
    waits_until timestamptz NOT NULL DEFAULT '-infinity',
    seed bigint NOT NULL,
    input_file uuid,
    output_file uuid NOT NULL DEFAULT gen_random_uuid(),
    error_file uuid NOT NULL DEFAULT gen_random_uuid(),
    metadata jsonb NOT NULL DEFAULT '{}',
    -- Of the lines that are refused; jsonb as OpenAI shows them.
    errors jsonb,
    idempotency_key varchar(255),
    total integer NOT NULL DEFAULT 0,
    done integer NOT NULL DEFAULT 0,
    failed integer NOT NULL DEFAULT 0,
    input_tokens bigint NOT NULL DEFAULT 0,
    cached_tokens bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    cost_micro bigint NOT NULL DEFAULT 0,
    -- The gateway that validates or finalizes it.
    runner varchar(100),
    lease_until timestamptz NOT NULL DEFAULT '-infinity',
    -- When its last lines were claimed, so that tenants take turns.
    claimed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    in_progress_at timestamptz,
    cancelling_at timestamptz,
    finalizing_at timestamptz,
    -- Completed, failed, expired or cancelled.
    ended_at timestamptz,
    expires_at timestamptz NOT NULL,
    delete_at timestamptz NOT NULL,
    UNIQUE (tenant_id, idempotency_key)
);
CREATE INDEX jobs_of_tenant ON jobs (tenant_id, id);
-- Claims skip from tenant to tenant, and read few of the jobs of each.
CREATE INDEX jobs_to_run ON jobs (model, is_live, tenant_id, expires_at, id) WHERE state = 'in_progress';
CREATE INDEX jobs_claimed ON jobs (model, is_live, tenant_id, claimed_at) WHERE state = 'in_progress';
-- See list_movable_jobs.
CREATE INDEX jobs_to_expire ON jobs (expires_at) WHERE state IN ('validating', 'in_progress');
CREATE INDEX jobs_to_finalize ON jobs (id) WHERE state = 'in_progress' AND done + failed = total;
CREATE INDEX jobs_to_move ON jobs (state, lease_until) WHERE ended_at IS NULL;
CREATE INDEX jobs_to_delete ON jobs (delete_at) WHERE ended_at IS NOT NULL;

-- Only unfinished jobs have lines, and single ones until they are deleted.
CREATE TABLE job_lines (
    job_id uuid NOT NULL REFERENCES jobs,
    line integer NOT NULL,
    custom_id varchar(512) NOT NULL,
    -- Its place in the input file.
    start bigint NOT NULL,
    size integer NOT NULL,
    -- Lines with the same beginning run one after the other.
    prefix bytea NOT NULL,
    state varchar(10) NOT NULL DEFAULT 'queued',
    attempt integer NOT NULL DEFAULT 0,
    lost_leases smallint NOT NULL DEFAULT 0,
    -- Of the present attempt, or the last.
    request_id uuid,
    runner varchar(100),
    lease_until timestamptz,
    not_before timestamptz NOT NULL DEFAULT '-infinity',
    -- Sealed.
    result bytea,
    status_code smallint,
    error_code varchar(64),
    PRIMARY KEY (job_id, line)
);
CREATE INDEX job_lines_to_run ON job_lines (job_id, prefix, line) WHERE state IN ('queued', 'running');
CREATE INDEX job_lines_of_requests ON job_lines (request_id) WHERE state = 'running';

ALTER TABLE jobs ENABLE ROW LEVEL SECURITY;
ALTER TABLE jobs FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON jobs USING (sees(tenant_id));
ALTER TABLE job_lines ENABLE ROW LEVEL SECURITY;
ALTER TABLE job_lines FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON job_lines USING (EXISTS (SELECT FROM jobs WHERE id = job_id));

-- Only claims, ends and cancels of lines settle these, not the gateways that look for lost requests.
ALTER TABLE reservations ADD COLUMN job_id uuid;
ALTER TABLE request_logs ADD COLUMN job_id uuid;

CREATE FUNCTION may_run(one job_lines) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT (one.state = 'queued' AND one.not_before <= now()) OR (one.state = 'running' AND one.lease_until < now())
$$;

-- Ends the attempts of lines without pay, whatever they have done until now. The accounts are locked already.
CREATE FUNCTION drop_attempts(requests uuid[]) RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF cardinality(requests) > 0 THEN
        PERFORM settle_batch(requests, array_fill(0::bigint, ARRAY[cardinality(requests)]), array_fill(0::bigint, ARRAY[cardinality(requests)]),
            array_fill('expired'::text, ARRAY[cardinality(requests)]));
        PERFORM spend_targets(requests, NULL, NULL, NULL, NULL);
    END IF;
END
$$;

-- Gives a runner up to so many lines of one job: of the tenant that has waited longest for its turn, the job that expires first, and its
-- lines that begin alike one after the other. Lines that have lost too many leases fail instead. Locks as everywhere: accounts, jobs, lines.
CREATE FUNCTION claim_lines(the_model text, requests uuid[], the_runner text, lease_seconds double precision, most_lost integer, live boolean)
RETURNS TABLE (
    job_id uuid, line integer, request_id uuid, attempt integer, start bigint, size integer, custom_id text, could_run_at timestamptz, was_lost boolean
)
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    chosen record;
    lines integer[];
    former uuid[];
    lost boolean[];
    given_up integer;
BEGIN
    WITH RECURSIVE tenants AS (
        (SELECT tenant_id FROM jobs WHERE state = 'in_progress' AND model = the_model AND is_live = live ORDER BY tenant_id LIMIT 1)
        UNION ALL
        SELECT following.tenant_id FROM tenants, LATERAL (
            SELECT jobs.tenant_id FROM jobs
            WHERE state = 'in_progress' AND model = the_model AND is_live = live AND jobs.tenant_id > tenants.tenant_id
            ORDER BY jobs.tenant_id LIMIT 1
        ) AS following
    ),
    turns AS MATERIALIZED (
        SELECT tenant_id, (
            SELECT max(claimed_at) FROM jobs
            WHERE state = 'in_progress' AND model = the_model AND is_live = live AND jobs.tenant_id = tenants.tenant_id
        ) AS last
        FROM tenants ORDER BY last NULLS FIRST, tenant_id
    )
    SELECT first.* INTO chosen
    FROM turns, LATERAL (
        -- In this order, so that the planner never reads the whole table.
        SELECT jobs.id, jobs.tenant_id, in_progress_at
        FROM jobs, LATERAL (
            SELECT FROM job_lines WHERE job_lines.job_id = jobs.id AND may_run(job_lines) ORDER BY prefix, job_lines.line LIMIT 1
        ) AS runnable
        WHERE state = 'in_progress' AND model = the_model AND is_live = live AND jobs.tenant_id = turns.tenant_id
            AND waits_until <= now() AND expires_at > now()
        ORDER BY expires_at, jobs.id LIMIT 1
    ) AS first
    LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    PERFORM FROM accounts WHERE owner = chosen.tenant_id FOR UPDATE;
    UPDATE jobs SET claimed_at = clock_timestamp() WHERE id = chosen.id AND state = 'in_progress';
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- A locked line is one whose runner extends its lease right now.
    SELECT array_agg(free.line ORDER BY prefix, free.line), array_agg(free.request_id ORDER BY prefix, free.line),
        array_agg(free.state = 'running' ORDER BY prefix, free.line)
    INTO lines, former, lost
    FROM (
        SELECT * FROM job_lines WHERE job_lines.job_id = chosen.id AND may_run(job_lines)
        ORDER BY prefix, job_lines.line LIMIT cardinality(requests) FOR UPDATE SKIP LOCKED
    ) AS free;
    PERFORM drop_attempts(array_remove(former, NULL));
    UPDATE job_lines SET state = 'failed', error_code = 'lease_lost_repeatedly', runner = NULL, lease_until = NULL
    WHERE job_lines.job_id = chosen.id AND job_lines.line = ANY (lines) AND lost_leases + (state = 'running')::integer >= most_lost;
    GET DIAGNOSTICS given_up = ROW_COUNT;
    UPDATE jobs SET failed = failed + given_up WHERE id = chosen.id AND given_up > 0;
    RETURN QUERY
    UPDATE job_lines SET
        lost_leases = lost_leases + (state = 'running')::integer, state = 'running', attempt = job_lines.attempt + 1,
        request_id = requests[number], runner = the_runner, lease_until = now() + make_interval(secs => lease_seconds)
    FROM unnest(lines) WITH ORDINALITY AS free (the_line, number)
    -- Told like this, the planner reads no other lines.
    WHERE job_lines.job_id = chosen.id AND job_lines.line = ANY (lines) AND job_lines.line = the_line AND state <> 'failed'
    RETURNING job_lines.job_id, job_lines.line, job_lines.request_id, job_lines.attempt, job_lines.start, job_lines.size, job_lines.custom_id::text,
        greatest(not_before, chosen.in_progress_at), lost[number];
END
$$;

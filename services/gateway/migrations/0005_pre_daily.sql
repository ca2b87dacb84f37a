-- What each day came to: sums that outlive the request log. And what a report asks of a request besides: on whose machine it ran, whether
-- it begins a conversation, and what its answer would have cost that was there already.

ALTER TABLE request_logs
    -- The user who answers for the worker that ran it last; NULL where that is not known, as with an answer that was there already.
    ADD COLUMN worker_owner varchar(64),
    ADD COLUMN worker_labels jsonb NOT NULL DEFAULT '{}',
    -- Its messages have no earlier answer among them.
    ADD COLUMN begins_conversation boolean NOT NULL DEFAULT false,
    ADD COLUMN saved_micro bigint NOT NULL DEFAULT 0;

-- No UNIQUE: labels may be longer than a row of an index. A day is written as a whole.
CREATE TABLE usage_days (
    -- The UTC day on which the requests began.
    day date NOT NULL,
    tenant_id uuid NOT NULL,
    -- Of somebody who was erased, an id that nobody has a name for.
    user_id uuid NOT NULL,
    model varchar(200),
    worker_owner varchar(64),
    worker_labels jsonb NOT NULL,
    succeeded integer NOT NULL,
    failed integer NOT NULL,
    timed_out integer NOT NULL,
    cancelled integer NOT NULL,
    limited integer NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cost_micro bigint NOT NULL,
    -- Of those that succeeded.
    response_ms bigint NOT NULL,
    -- Of those among them that a worker ran: for tokens a second.
    made_tokens bigint NOT NULL,
    made_ms bigint NOT NULL,
    cached integer NOT NULL,
    saved_micro bigint NOT NULL,
    conversations integer NOT NULL,
    thumbs_up integer NOT NULL,
    thumbs_down integer NOT NULL
);

CREATE INDEX usage_days_by_day ON usage_days (day);

ALTER TABLE usage_days ENABLE ROW LEVEL SECURITY;
ALTER TABLE usage_days FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON usage_days USING (sees(tenant_id));

-- Which days are summed up.
CREATE TABLE usage_rolls (
    day date PRIMARY KEY,
    -- Something of the day was written after it was summed up, or it never was.
    is_stale boolean NOT NULL DEFAULT true,
    rolled_at timestamptz,
    -- Rows of the day have left the request log: its sums stay as they are.
    is_final boolean NOT NULL DEFAULT false
);

INSERT INTO usage_rolls (day) SELECT DISTINCT (created_at AT TIME ZONE 'UTC')::date FROM request_logs;

CREATE INDEX entries_given_back ON entries (at) WHERE kind = 'reversal';

-- One day as the request log has it; a thumb counts for the day of its request.
CREATE FUNCTION usage_of_day(the_day date) RETURNS SETOF usage_days LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT the_day, log.tenant_id, log.user_id, log.model_used, log.worker_owner, log.worker_labels,
        (count(*) FILTER (WHERE log.status = 'success'))::integer,
        (count(*) FILTER (WHERE log.status = 'error'))::integer,
        (count(*) FILTER (WHERE log.status = 'timeout'))::integer,
        (count(*) FILTER (WHERE log.status = 'cancelled'))::integer,
        (count(*) FILTER (WHERE log.status = 'limited'))::integer,
        sum(log.prompt_tokens)::bigint,
        sum(log.completion_tokens)::bigint,
        sum(log.cost_micro)::bigint,
        coalesce(sum(log.response_time_ms) FILTER (WHERE log.status = 'success'), 0)::bigint,
        coalesce(sum(log.completion_tokens) FILTER (WHERE log.status = 'success' AND NOT log.cached), 0)::bigint,
        coalesce(sum(log.response_time_ms) FILTER (WHERE log.status = 'success' AND NOT log.cached), 0)::bigint,
        (count(*) FILTER (WHERE log.cached))::integer,
        sum(log.saved_micro)::bigint,
        (count(*) FILTER (WHERE log.begins_conversation AND log.status <> 'limited'))::integer,
        (count(*) FILTER (WHERE feedback.rating > 0))::integer,
        (count(*) FILTER (WHERE feedback.rating < 0))::integer
    FROM request_logs AS log
    LEFT JOIN feedback ON feedback.request_id = log.id
    WHERE log.created_at >= the_day::timestamp AT TIME ZONE 'UTC' AND log.created_at < (the_day + 1)::timestamp AT TIME ZONE 'UTC'
    GROUP BY log.tenant_id, log.user_id, log.model_used, log.worker_owner, log.worker_labels
$$;

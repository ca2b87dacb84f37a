-- Rollouts move conversations from one target of a route to another, step by step, and are judged by the outcomes of their requests.
SET LOCAL lock_timeout = '1s';

ALTER TABLE request_logs
    -- Until the first text; null if none came.
    ADD COLUMN first_token_ms integer;

CREATE TABLE rollouts (
    id uuid PRIMARY KEY,
    route varchar(100) NOT NULL,
    candidate varchar(100) NOT NULL,
    baseline varchar(100) NOT NULL,
    -- What sticks to a target, as in the route at the start.
    sticky text NOT NULL,
    plan jsonb NOT NULL,
    state text NOT NULL CHECK (state IN ('running', 'holding', 'paused', 'rolled_back', 'promoted', 'ended')),
    reason text NOT NULL DEFAULT '',
    -- The step, and the evidence so far.
    progress jsonb NOT NULL,
    -- By any gateway.
    looked_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    is_open boolean NOT NULL GENERATED ALWAYS AS (state IN ('running', 'holding', 'paused')) STORED
);
CREATE UNIQUE INDEX rollouts_open ON rollouts (route) WHERE is_open;
CREATE INDEX rollouts_by_start ON rollouts (started_at DESC);

CREATE TABLE rollout_events (
    rollout uuid NOT NULL REFERENCES rollouts (id) ON DELETE CASCADE,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    state text NOT NULL,
    -- Percent of the baseline's units.
    share double precision NOT NULL,
    reason text NOT NULL,
    -- The administrator; null for the gateways.
    author uuid,
    PRIMARY KEY (rollout, at)
);

-- What was known at one time, for charts.
CREATE TABLE rollout_points (
    rollout uuid NOT NULL REFERENCES rollouts (id) ON DELETE CASCADE,
    at timestamptz NOT NULL,
    body jsonb NOT NULL,
    PRIMARY KEY (rollout, at)
);

-- What requests say about a rollout, until a gateway has judged it: one row for each written batch. The arrays have one element for each request.
CREATE TABLE rollout_outcomes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rollout uuid NOT NULL,
    is_candidate boolean NOT NULL,
    -- Ended requests; otherwise ratings, or running requests that are late.
    are_ended boolean NOT NULL,
    tenants uuid[] NOT NULL,
    users uuid[] NOT NULL,
    began_at timestamptz[] NOT NULL,
    -- Null: the request says nothing about errors.
    failed boolean[] NOT NULL,
    first_token_ms integer[] NOT NULL,
    -- Of answers without text.
    waited_ms integer[] NOT NULL,
    -- From the first text to the end.
    writing_ms integer[] NOT NULL,
    tokens integer[] NOT NULL,
    completion_tokens integer[] NOT NULL,
    upstream_micro bigint[] NOT NULL,
    ratings smallint[] NOT NULL
);
-- Requests whose rating has counted.
CREATE TABLE rollout_ratings (
    request_id uuid PRIMARY KEY,
    rollout uuid NOT NULL REFERENCES rollouts (id) ON DELETE CASCADE
);
CREATE INDEX rollout_ratings_by_rollout ON rollout_ratings (rollout);
CREATE INDEX rollout_outcomes_by_rollout ON rollout_outcomes (rollout);

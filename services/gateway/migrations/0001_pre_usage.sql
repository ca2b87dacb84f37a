-- Users and keys belong to auth, so their ids refer to nothing here: no foreign key crosses a schema.
CREATE TABLE request_logs (
    -- The request's own id: writing a row again changes nothing.
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    -- NULL where the request came with an access token instead of a key.
    api_key_id uuid,
    -- HMAC-SHA256 in hex; NULL where the request was refused before it had a prompt.
    prompt_hash varchar(64),
    model_used varchar(200),
    response_time_ms integer NOT NULL,
    tokens_used integer NOT NULL,
    prompt_tokens integer NOT NULL,
    completion_tokens integer NOT NULL,
    status varchar(20) NOT NULL CHECK (status IN ('success', 'error', 'timeout', 'cancelled', 'limited')),
    -- The code of the error, stable for ever; NULL for success.
    error_code varchar(64),
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK (tokens_used = prompt_tokens + completion_tokens)
);

CREATE INDEX request_logs_by_user ON request_logs (user_id, created_at DESC);

CREATE TABLE usage_stats (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL,
    api_key_id uuid,
    request_count integer NOT NULL DEFAULT 0,
    tokens_used bigint NOT NULL DEFAULT 0,
    -- The UTC day on which the requests began.
    date date NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE NULLS NOT DISTINCT (user_id, api_key_id, date)
);

-- Settled usage for other systems: a row for each request and refund, written in the transaction that settles it while an export is configured.
SET LOCAL lock_timeout = '1s';

CREATE TABLE usage_outbox (
    -- Numbers commit out of order; see fence_outbox. A session must not draw numbers in advance (CACHE).
    number bigint GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
    -- The request, which is the ledger's transfer; of a refund, derived from it.
    id uuid NOT NULL UNIQUE,
    owner uuid NOT NULL,
    key_id uuid,
    model varchar(200),
    prompt_tokens integer NOT NULL,
    completion_tokens integer NOT NULL,
    -- Covered by the plan's allowance.
    covered_tokens integer NOT NULL DEFAULT 0,
    cost_micro bigint NOT NULL,
    -- Its numbers are negative or 0.
    is_refund boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL,
    settled_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX usage_outbox_by_time ON usage_outbox (settled_at);

ALTER TABLE usage_outbox ENABLE ROW LEVEL SECURITY;
ALTER TABLE usage_outbox FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON usage_outbox USING (sees(owner));

CREATE TABLE usage_sinks (
    name varchar(40) PRIMARY KEY,
    -- It gets the rows after this number.
    first_number bigint NOT NULL,
    -- It has all of them up to this one.
    sent_number bigint NOT NULL,
    -- The rows up to this one are sent together, as events of this unit, until the sink has them. NULL: nothing is being sent.
    sending_number bigint,
    sending_unit varchar(10) NOT NULL DEFAULT 'request',
    -- Since when it may have some of them; NULL if it certainly has none.
    doubtful_since timestamptz,
    sent_at timestamptz,
    -- Why it didn't take them the last time.
    error text,
    compared_at timestamptz,
    difference_tokens bigint NOT NULL DEFAULT 0,
    difference_micro bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- What a sink has acknowledged, by the day of the settlement.
CREATE TABLE usage_sink_days (
    sink varchar(40) NOT NULL REFERENCES usage_sinks,
    day date NOT NULL,
    tokens bigint NOT NULL,
    cost_micro bigint NOT NULL,
    PRIMARY KEY (sink, day)
);

-- The id of something that belongs to a request.
CREATE FUNCTION derive_id(kind text, request uuid) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT left(encode(sha256(convert_to(kind || '/' || request, 'UTF8')), 'hex'), 32)::uuid
$$;

-- A fence behind all numbers drawn so far: once pg_snapshot_xmin has reached `xid`, each of them is committed or will never be. A writer gets
-- its transaction id with its earlier changes, before it draws a number, and this function takes its own after it has read the last number.
-- Numbers alone are in the cursors, because transaction ids start again when a dump is restored.
CREATE FUNCTION fence_outbox(OUT number bigint, OUT xid bigint) LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END INTO number FROM usage_outbox_number_seq;
    xid := pg_current_xact_id()::text::bigint;
END
$$;

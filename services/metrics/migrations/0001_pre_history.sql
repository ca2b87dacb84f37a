-- What the series of a row are, in their order. Rows of many nodes and moments have one layout.
CREATE TABLE layouts (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- SHA-256 of the names: an index on the names themselves would be as large as they are.
    digest bytea NOT NULL UNIQUE,
    -- Such as ai_platform_tokens_total{model="llama3",type="output"}.
    names text[] NOT NULL,
    -- The last UTC day on which a row was written with it; forgotten when the rows of that day are.
    used_on date NOT NULL
);

CREATE TABLE snapshots (
    -- Seconds: 15 as it was seen, 60 and 3600 rolled up.
    resolution smallint NOT NULL,
    -- When it was looked, or when the minute or hour begins.
    at timestamptz NOT NULL,
    node text NOT NULL,
    service text NOT NULL,
    -- 0, and 1, 2 … where a node had several layouts in that time.
    part smallint NOT NULL,
    layout integer NOT NULL,
    -- How many looks are summed up.
    looks integer NOT NULL,
    -- Of counters how much they grew; of gauges the sum of what was seen, the mean times looks.
    sums real[] NOT NULL,
    -- The highest of one look; NULL where there was but one.
    peaks real[],
    PRIMARY KEY (resolution, at, node, service, part)
);

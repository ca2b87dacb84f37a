-- How many scripted tool calls each build of a model got right. The audit log says who has checked it.
CREATE TABLE model_checks (
    -- A digest, or a node or provider with the name of the model there.
    build varchar(300) PRIMARY KEY,
    right_calls smallint NOT NULL,
    checked_at timestamptz NOT NULL DEFAULT now()
);

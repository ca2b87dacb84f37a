-- name: record_model_check
-- Record how many scripted tool calls these builds of a model got right.
INSERT INTO model_checks (build, right_calls) SELECT DISTINCT unnest($1::text[]), $2::smallint
ON CONFLICT (build) DO UPDATE SET right_calls = excluded.right_calls, checked_at = excluded.checked_at;

-- name: list_model_checks
-- List the newest results.
SELECT build, right_calls FROM model_checks ORDER BY checked_at DESC LIMIT 10000;

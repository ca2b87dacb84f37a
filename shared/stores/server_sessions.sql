-- name: set
-- Settings for the rest of this session.
SELECT set_config(name, value, false) FROM unnest($1::text[], $2::text[]) AS wanted (name, value);

-- name: look
-- Which process of the server answers, and how these settings stand there.
SELECT pg_backend_pid() AS process, array_agg(coalesce(current_setting(name, true), '') ORDER BY place) AS settings
FROM unnest($1::text[]) WITH ORDINALITY AS wanted (name, place);

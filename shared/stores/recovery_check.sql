-- name: newest_migration
-- The newest migration of the schema.
SELECT coalesce(max(number), 0) FROM migrations;

-- name: has_feature_migrations
-- Whether a version ran here that knows features.
SELECT to_regclass('feature_migrations') IS NOT NULL;

-- name: newest_feature_migrations
-- The newest migration of each feature.
SELECT feature, max(number) AS number FROM feature_migrations GROUP BY feature;

-- name: plan_counts
-- The statement that counts the rows of every table of the schema, quoted by the server.
SELECT string_agg(format('SELECT %L AS name, count(*) AS rows FROM %I.%I', nspname || '.' || relname, nspname, relname), ' UNION ALL ')
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE nspname = current_schema() AND relkind IN ('r', 'p') AND NOT relispartition;

-- name: has_recovery_log
-- Whether this schema has a recovery log; older ones do not.
SELECT to_regclass('recovery_log') IS NOT NULL;

-- name: recovery_log_head
-- The number of the log's newest line.
SELECT coalesce(max(number), 0) FROM recovery_log;

-- name: find_broken_line
-- The first line that does not follow the one before it, or whose hash is not that of its content.
SELECT number, why
FROM (
    SELECT
        number,
        CASE
            WHEN number <> coalesce(lag(number) OVER lines, 0) + 1 THEN 'lines before it are missing'
            WHEN previous_hash <> coalesce(lag(hash) OVER lines, decode(repeat('00', 32), 'hex')) THEN 'it does not follow the line before it'
            WHEN hash <> sha256(previous_hash || convert_to(concat_ws(
                E'\n', number, (extract(epoch FROM at) * 1000000)::bigint, kind, subject, details
            ), 'UTF8')) THEN 'it was changed'
        END AS why
    FROM recovery_log
    WINDOW lines AS (ORDER BY number)
) AS checked
WHERE why IS NOT NULL
ORDER BY number
LIMIT 1;

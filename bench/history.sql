-- name: add_layout
-- Add the layout of some nodes: its digest ($1), its series ($2), and when it was used ($3).
INSERT INTO metrics.layouts (digest, names, used_on) VALUES ($1, $2, $3);

-- name: fill_day
-- Make a day of minutes from a time ($1) of so many nodes ($2) with so many series ($3); the nodes have four layouts.
INSERT INTO metrics.snapshots (resolution, at, node, service, part, layout, looks, sums, peaks)
SELECT 60, $1::timestamptz + minute * interval '1 minute', 'U' || translate(lpad(node::text, 11, '0'), '0189', 'ABCD'), 'inference', 0,
    1 + node % 4, 4, array_fill(node::real, ARRAY[$3::integer]), array_fill(node::real, ARRAY[$3::integer])
FROM generate_series(0, 1439) AS minute, generate_series(1, $2::integer) AS node;

-- name: measure_rows
-- Return the bytes of a row by resolution: its own size and an equal share of the index and the overhead.
WITH sizes AS (
    SELECT resolution, avg(pg_column_size(s.*)) AS own, count(*) AS rows FROM metrics.snapshots s GROUP BY 1
)
SELECT resolution, (own + (pg_total_relation_size('metrics.snapshots') - sum(own * rows) OVER ()) / sum(rows) OVER ())::float8 AS bytes
FROM sizes;

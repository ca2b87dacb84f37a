-- name: ensure_layout
-- Return a layout's id, add the layout if it is new, and record that it is used on this day.
INSERT INTO layouts (digest, names, used_on) VALUES ($1, $2, $3)
ON CONFLICT (digest) DO UPDATE SET used_on = greatest(layouts.used_on, excluded.used_on)
RETURNING id;

-- name: write_looks
-- Add rows of one collection ("look"), with all numbers in one array. Existing rows stay as they are.
INSERT INTO snapshots (resolution, at, node, service, part, layout, looks, sums)
SELECT $1, row.at, row.node, row.service, 0, row.layout, 1, ($7::real[])[row.first:row.last]
FROM unnest($2::timestamptz[], $3::text[], $4::text[], $5::integer[], $6::integer[], $8::integer[])
    AS row (at, node, service, layout, first, last)
ON CONFLICT DO NOTHING;

-- name: write_rolled
-- Write rolled-up rows; a repetition changes nothing.
INSERT INTO snapshots (resolution, at, node, service, part, layout, looks, sums, peaks)
SELECT $1, $2, row.node, row.service, row.part, row.layout, row.looks,
       ($8::real[])[row.first:row.last], ($9::real[])[row.first:row.last]
FROM unnest($3::text[], $4::text[], $5::smallint[], $6::integer[], $7::integer[], $10::integer[], $11::integer[])
    AS row (node, service, part, layout, looks, first, last)
ON CONFLICT (resolution, at, node, service, part) DO UPDATE
SET layout = excluded.layout, looks = excluded.looks, sums = excluded.sums, peaks = excluded.peaks;

-- name: find_newest
-- Return the newest time of a resolution up to $2. Rows from a clock that was wrong may be later.
SELECT max(at) FROM snapshots WHERE resolution = $1 AND at <= $2;

-- name: read_newest
-- The same, for readers.
-- replica
SELECT max(at) FROM snapshots WHERE resolution = $1 AND at <= $2;

-- name: find_next
-- Return the first time of a resolution in a period.
SELECT min(at) FROM snapshots WHERE resolution = $1 AND at >= $2 AND at < $3;

-- name: list_nodes
-- List the nodes with rows in a period.
SELECT DISTINCT node FROM snapshots WHERE resolution = $1 AND at >= $2 AND at < $3 ORDER BY node;

-- name: list_rows
-- List the rows of these nodes in a period.
SELECT node, service, layout, looks, sums, peaks FROM snapshots
WHERE resolution = $1 AND at >= $2 AND at < $3 AND node = ANY($4::text[]);

-- name: delete_before
-- Delete a batch of rows that are too old, or so far in the future that a clock was wrong.
DELETE FROM snapshots WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM snapshots WHERE resolution = $1 AND (at < $2 OR at > $3) LIMIT $4
));

-- name: delete_layouts
-- Delete layouts that no row uses.
DELETE FROM layouts WHERE used_on < $1;

-- name: plan_by_question
-- Plan the statements of this transaction for their actual values, because a generic plan reads all rows for each step. Don't compile them.
-- replica
SELECT set_config('plan_cache_mode', 'force_custom_plan', true), set_config('jit', 'off', true);

-- name: read_lines
-- For each series and step, return the growth (of a gauge: the mean) summed over nodes, the number of nodes, and the highest sample.
-- replica
WITH wanted AS MATERIALIZED (
    SELECT layouts.id AS layout, series.name, series.position::integer AS position,
           dense_rank() OVER (ORDER BY series.name COLLATE "C")::integer AS number
    FROM layouts CROSS JOIN LATERAL unnest(layouts.names) WITH ORDINALITY AS series (name, position)
    WHERE layouts.used_on >= ($2::timestamptz AT TIME ZONE 'UTC')::date AND split_part(series.name, '{', 1) = ANY($4::text[])
)
SELECT found.service, found.node, names.name, steps.step, found.growth, found.mean, found.nodes, found.peak
-- Group one step after the other, and join the names last, so that each group and its keys are small.
FROM generate_series(0, $11::integer - 1) AS steps (step)
CROSS JOIN LATERAL (
    SELECT CASE WHEN $6::boolean THEN of_node.service ELSE '' END AS service, CASE WHEN $7::boolean THEN of_node.node ELSE '' END AS node,
           of_node.number, sum(of_node.total) AS growth, sum(of_node.total / of_node.looks) AS mean, count(*) AS nodes,
           max(of_node.peak) AS peak
    FROM (
        SELECT snapshots.node COLLATE "C" AS node, snapshots.service COLLATE "C" AS service, wanted.number,
               sum(snapshots.sums[wanted.position]::float8) AS total, sum(snapshots.looks) AS looks,
               max(coalesce(snapshots.peaks[wanted.position], snapshots.sums[wanted.position])) AS peak
        FROM unnest($1::smallint[], $3::timestamptz[], $9::timestamptz[]) AS piece (resolution, begin, before)
        JOIN snapshots ON snapshots.resolution = piece.resolution
            AND snapshots.at >= greatest(piece.begin, $2::timestamptz + $5::integer * interval '1 second' * steps.step)
            AND snapshots.at < least(piece.before, $2::timestamptz + $5::integer * interval '1 second' * (steps.step + 1))
        JOIN wanted USING (layout)
        WHERE $10::text IS NULL OR snapshots.node = $10::text
        GROUP BY 1, 2, 3
    ) AS of_node
    GROUP BY 1, 2, 3
) AS found
JOIN (SELECT DISTINCT number, name FROM wanted) AS names USING (number)
LIMIT $8;

-- name: read_covered
-- Count the collections in each step that know the growth since the previous one: those whose collector's rows have this counter.
-- replica
SELECT of_node.step, max(of_node.looks)::integer AS looks
FROM (
    SELECT snapshots.node, floor(extract(epoch FROM snapshots.at - $2::timestamptz) / $5::integer)::integer AS step,
           sum(snapshots.looks) AS looks
    FROM unnest($1::smallint[], $3::timestamptz[], $4::timestamptz[]) AS piece (resolution, begin, before)
    JOIN snapshots ON snapshots.resolution = piece.resolution AND snapshots.at >= piece.begin AND snapshots.at < piece.before
    JOIN layouts ON layouts.id = snapshots.layout
    WHERE snapshots.service = $6 AND $7::text = ANY(layouts.names)
    GROUP BY 1, 2
) AS of_node
GROUP BY 1;

-- name: list_silences
-- List silences that are in effect.
SELECT id, until, said FROM silences WHERE NOT ended AND until > $1 ORDER BY until DESC LIMIT $2;

-- name: add_silence
-- Add a silence, and delete those whose time is over.
WITH over AS (DELETE FROM silences WHERE until < now())
INSERT INTO silences (id, until, said) VALUES ($1, $2, $3);

-- name: end_silence
-- End a silence.
DELETE FROM silences WHERE id = $1;

-- name: read_state
-- Read a value that the leader has saved.
SELECT at, body FROM leader_state WHERE name = $1;

-- name: write_state
-- Save a value, replacing the previous one.
INSERT INTO leader_state (name, at, body) VALUES ($1, $2, $3)
ON CONFLICT (name) DO UPDATE SET at = excluded.at, body = excluded.body;

-- name: ensure_layout
-- The id of a layout, made where it is new, and that it is used on this day.
INSERT INTO layouts (digest, names, used_on) VALUES ($1, $2, $3)
ON CONFLICT (digest) DO UPDATE SET used_on = greatest(layouts.used_on, excluded.used_on)
RETURNING id;

-- name: write_looks
-- Rows as they were seen, with all their numbers in one array; what was told of that time before stays.
INSERT INTO snapshots (resolution, at, node, service, part, layout, looks, sums)
SELECT $1, row.at, row.node, row.service, 0, row.layout, 1, ($7::real[])[row.first:row.last]
FROM unnest($2::timestamptz[], $3::text[], $4::text[], $5::integer[], $6::integer[], $8::integer[])
    AS row (at, node, service, layout, first, last)
ON CONFLICT DO NOTHING;

-- name: write_rolled
-- Rows that were rolled up; doing it again gives the same.
INSERT INTO snapshots (resolution, at, node, service, part, layout, looks, sums, peaks)
SELECT $1, $2, row.node, row.service, row.part, row.layout, row.looks,
       ($8::real[])[row.first:row.last], ($9::real[])[row.first:row.last]
FROM unnest($3::text[], $4::text[], $5::smallint[], $6::integer[], $7::integer[], $10::integer[], $11::integer[])
    AS row (node, service, part, layout, looks, first, last)
ON CONFLICT (resolution, at, node, service, part) DO UPDATE
SET layout = excluded.layout, looks = excluded.looks, sums = excluded.sums, peaks = excluded.peaks;

-- name: find_newest
-- The newest moment of a resolution that is not after this one; a clock that was wrong may have left later ones.
SELECT max(at) FROM snapshots WHERE resolution = $1 AND at <= $2;

-- name: find_next
-- The first moment of a resolution from this one on and before that one.
SELECT min(at) FROM snapshots WHERE resolution = $1 AND at >= $2 AND at < $3;

-- name: list_nodes
-- Who has rows within a time.
SELECT DISTINCT node FROM snapshots WHERE resolution = $1 AND at >= $2 AND at < $3 ORDER BY node;

-- name: list_rows
-- The rows of some nodes within a time.
SELECT node, service, layout, looks, sums, peaks FROM snapshots
WHERE resolution = $1 AND at >= $2 AND at < $3 AND node = ANY($4::text[]);

-- name: delete_before
-- Some of the rows that are too old, or from so far in the future that a clock was wrong.
DELETE FROM snapshots WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM snapshots WHERE resolution = $1 AND (at < $2 OR at > $3) LIMIT $4
));

-- name: delete_layouts
-- Those that no row has any more.
DELETE FROM layouts WHERE used_on < $1;

-- name: plan_by_question
-- For the rest of a transaction: a plan that fits any question reads all rows for each step, and what takes a second is not worth compiling.
SELECT set_config('plan_cache_mode', 'force_custom_plan', true), set_config('jit', 'off', true);

-- name: read_lines
-- Of each series and step: the sum over nodes of what it grew by (of a gauge, of its mean), how many nodes that is, and the highest look.
WITH wanted AS MATERIALIZED (
    SELECT layouts.id AS layout, series.name, series.position::integer AS position,
           dense_rank() OVER (ORDER BY series.name COLLATE "C")::integer AS number
    FROM layouts CROSS JOIN LATERAL unnest(layouts.names) WITH ORDINALITY AS series (name, position)
    WHERE layouts.used_on >= ($2::timestamptz AT TIME ZONE 'UTC')::date AND split_part(series.name, '{', 1) = ANY($4::text[])
)
SELECT found.service, found.node, names.name, steps.step, found.growth, found.mean, found.nodes, found.peak
-- One step after the other, and names come last: what is grouped at a time stays small, and so do its keys.
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
-- How many looks of each step knew what had grown since the look before: as many as have this counter of those who look.
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

-- name: list_alarms
-- What the leader knows; and what replicas before 0.2 did, as far as somebody still looks.
SELECT id, since, rule, severity, labels, value, firing, ended, seen_by, seen_at, told, held_at, owed FROM alarms
WHERE node = 'leader' OR ended IS NOT NULL OR held_at > $1
ORDER BY node = 'leader' DESC, held_at DESC
LIMIT $2;

-- name: write_alarms
-- Some of the leader's; doing it again gives the same. `acknowledge` records who handles it.
INSERT INTO alarms (node, id, since, rule, severity, labels, value, firing, ended, seen_by, seen_at, told, held_at, owed)
SELECT 'leader', id, since, rule, severity, labels, value, firing, ended, seen_by, seen_at, told, held_at, string_to_array(owed, ',')
FROM unnest(
    $1::text[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::double precision[], $7::boolean[],
    $8::timestamptz[], $9::text[], $10::timestamptz[], $11::boolean[], $12::timestamptz[], $13::text[]
) AS row (id, since, rule, severity, labels, value, firing, ended, seen_by, seen_at, told, held_at, owed)
ON CONFLICT (node, id, since) DO UPDATE
SET value = excluded.value, firing = excluded.firing, ended = excluded.ended, told = excluded.told, held_at = excluded.held_at,
    owed = excluded.owed;

-- name: keep_alarms
-- None but these of the leader's.
DELETE FROM alarms WHERE node <> 'leader' OR (id, since) NOT IN (SELECT * FROM unnest($1::text[], $2::timestamptz[]));

-- name: acknowledge
-- Acknowledge a firing alert: on the leader's row, which is made where only a replica before 0.2 has one.
INSERT INTO alarms (node, id, since, rule, severity, labels, value, firing, ended, seen_by, seen_at, told, held_at, owed)
SELECT 'leader', id, since, rule, severity, labels, value, firing, ended, $2, $3, told, held_at, owed FROM alarms
WHERE id = $1 AND ended IS NULL
ORDER BY node = 'leader' DESC, held_at DESC LIMIT 1
ON CONFLICT (node, id, since) DO UPDATE SET seen_by = excluded.seen_by, seen_at = excluded.seen_at
WHERE alarms.seen_at IS NULL OR alarms.seen_at < excluded.seen_at;

-- name: list_silences
-- Those whose time is not over, also those that somebody has ended.
SELECT id, until, ended, said FROM silences WHERE until > $1 ORDER BY ended, until DESC LIMIT $2;

-- name: write_silences
-- New ones; what another replica has done with one of them stays.
INSERT INTO silences (id, until, said) SELECT * FROM unnest($1::text[], $2::timestamptz[], $3::text[])
ON CONFLICT DO NOTHING;

-- name: end_silences
-- By somebody. They stay until then, so that every replica hears of it.
UPDATE silences SET ended = true, until = least(until, $2) WHERE id = ANY($1::text[]);

-- name: delete_old_silences
-- Those whose time is over.
DELETE FROM silences WHERE until < $1;

-- name: read_state
-- What the leader has put down under this name.
SELECT at, body FROM leader_state WHERE name = $1;

-- name: write_state
-- In place of what it put down before.
INSERT INTO leader_state (name, at, body) VALUES ($1, $2, $3)
ON CONFLICT (name) DO UPDATE SET at = excluded.at, body = excluded.body;

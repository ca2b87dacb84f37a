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

-- name: read_lines
-- Of each series and step: the sum over nodes of what it grew by (of a gauge, of its mean), how many nodes that is, and the highest look.
WITH wanted AS MATERIALIZED (
    SELECT layouts.id AS layout, series.name, series.position::integer AS position
    FROM layouts CROSS JOIN LATERAL unnest(layouts.names) WITH ORDINALITY AS series (name, position)
    WHERE split_part(series.name, '{', 1) = ANY($4::text[])
),
of_node AS (
    SELECT snapshots.node, snapshots.service, wanted.name,
           floor(extract(epoch FROM snapshots.at - $2::timestamptz) / $5::integer)::integer AS step,
           sum(snapshots.sums[wanted.position]::float8) AS total, sum(snapshots.looks) AS looks,
           max(coalesce(snapshots.peaks[wanted.position], snapshots.sums[wanted.position])) AS peak
    FROM unnest($1::smallint[], $3::timestamptz[], $9::timestamptz[]) AS piece (resolution, begin, before)
    JOIN snapshots ON snapshots.resolution = piece.resolution AND snapshots.at >= piece.begin AND snapshots.at < piece.before
    JOIN wanted USING (layout)
    GROUP BY 1, 2, 3, 4
)
SELECT CASE WHEN $6::boolean THEN service ELSE '' END AS service, CASE WHEN $7::boolean THEN node ELSE '' END AS node, name, step,
       sum(total) AS growth, sum(total / looks) AS mean, count(*) AS nodes, max(peak) AS peak
FROM of_node
GROUP BY 1, 2, 3, 4
LIMIT $8;

-- name: read_growth
-- How much counters grew in each step, where they did, of some services; of histograms some of the buckets. The newest first.
WITH wanted AS MATERIALIZED (
    SELECT layouts.id AS layout, series.name, series.position::integer AS position
    FROM layouts CROSS JOIN LATERAL unnest(layouts.names) WITH ORDINALITY AS series (name, position)
    WHERE split_part(series.name, '{', 1) = ANY($4::text[])
      AND coalesce(substring(series.name FROM '[{,]le="([^"]*)"') = ANY($5::text[]), true)
)
SELECT snapshots.service, CASE WHEN $6::boolean THEN snapshots.node ELSE '' END AS node, wanted.name,
       floor(extract(epoch FROM snapshots.at - $2::timestamptz) / $7::integer)::integer AS step,
       sum(snapshots.sums[wanted.position]::float8) AS growth
FROM snapshots JOIN wanted USING (layout)
WHERE snapshots.resolution = $1 AND snapshots.at >= $2 AND snapshots.at < $3 AND snapshots.service = ANY($8::text[])
GROUP BY 1, 2, 3, 4
HAVING sum(snapshots.sums[wanted.position]) > 0
ORDER BY step DESC
LIMIT $9;

-- name: list_alarms
-- What one replica knew.
SELECT id, since, rule, severity, labels, value, firing, ended, seen_by, seen_at, told, held_at FROM alarms WHERE node = $1;

-- name: list_alarms_of_others
-- What the other replicas know: what lasts, as far as somebody still looks, and what is just over.
SELECT id, since, rule, severity, labels, value, firing, ended, seen_by, seen_at, told, held_at FROM alarms
WHERE node <> $1 AND (ended > $3 OR (ended IS NULL AND held_at > $2))
LIMIT $4;

-- name: write_alarms
-- Some of one replica's; doing it again gives the same.
INSERT INTO alarms (node, id, since, rule, severity, labels, value, firing, ended, seen_by, seen_at, told, held_at)
SELECT $1, * FROM unnest(
    $2::text[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::double precision[], $8::boolean[],
    $9::timestamptz[], $10::text[], $11::timestamptz[], $12::boolean[], $13::timestamptz[]
)
ON CONFLICT (node, id, since) DO UPDATE
SET value = excluded.value, firing = excluded.firing, ended = excluded.ended, seen_by = excluded.seen_by,
    seen_at = excluded.seen_at, told = excluded.told, held_at = excluded.held_at;

-- name: delete_alarms
-- Some of one replica's.
DELETE FROM alarms USING unnest($2::text[], $3::timestamptz[]) AS gone (id, since)
WHERE alarms.node = $1 AND alarms.id = gone.id AND alarms.since = gone.since;

-- name: touch_alarms
-- What lasts still does.
UPDATE alarms SET held_at = $2 WHERE node = $1 AND ended IS NULL;

-- name: delete_old_alarms
-- Those of replicas that are gone.
DELETE FROM alarms WHERE coalesce(ended, held_at) < $1;

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

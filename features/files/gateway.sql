-- name: lock_file_quota
-- Let the tenant's other uploads wait until the end of the transaction.
SELECT pg_advisory_xact_lock(hashtextextended('aimesh.gateway.files.' || $1::uuid, 0));

-- name: measure_files
-- Return the bytes of a tenant's files, without the file $2.
SELECT coalesce(sum(bytes), 0)::bigint FROM files WHERE tenant_id = $1 AND id <> $2 AND state <> 'deleting';

-- name: measure_all_files
-- Return the bytes of all files of at most $1 bytes, and of all others.
SELECT coalesce(sum(bytes) FILTER (WHERE bytes <= $1), 0)::bigint AS small, coalesce(sum(bytes) FILTER (WHERE bytes > $1), 0)::bigint AS large
FROM files WHERE state = 'ready';

-- name: begin_file
-- Begin an upload, or again one that was broken off; it is dead after $5 seconds. No row if the file is complete or is being deleted.
INSERT INTO files (id, tenant_id, user_id, bytes, expires_at) VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5))
ON CONFLICT (id) DO UPDATE SET expires_at = EXCLUDED.expires_at WHERE files.state = 'uploading'
RETURNING id;

-- name: finish_file
-- Show an upload that is complete, unless it was given up. $7: after how many seconds it expires; null: never.
UPDATE files SET state = 'ready', name = $2, purpose = $3, bytes = $4, sha256 = $5, expires_at = created_at + make_interval(secs => $6)
WHERE id = $1 AND state = 'uploading' RETURNING *;

-- name: add_file_parts
-- Add the parts of a file.
INSERT INTO file_parts (file_id, tenant_id, number, start, bytes, content)
SELECT $1, $2, * FROM unnest($3::integer[], $4::bigint[], $5::integer[], $6::bytea[]);

-- name: find_file
-- Find a file of a tenant; $3: also one that jobs have for themselves, or still use after its time.
SELECT * FROM files WHERE id = $1 AND tenant_id = $2 AND state = 'ready' AND ($3 OR (purpose <> 'job_input' AND (expires_at IS NULL OR expires_at > now())));

-- name: list_file_parts
-- List the sizes of a file's parts.
SELECT bytes, content IS NULL AS is_object FROM file_parts WHERE file_id = $1 ORDER BY number;

-- name: read_file_part
-- Return a sealed part.
SELECT content FROM file_parts WHERE file_id = $1 AND number = $2;

-- name: list_files_newest
-- List a tenant's files behind $2, newest first; of one purpose. Null stands for all.
SELECT * FROM files
WHERE tenant_id = $1 AND ($2::uuid IS NULL OR id < $2) AND ($3::text IS NULL OR purpose = $3)
    AND state = 'ready' AND purpose <> 'job_input' AND (expires_at IS NULL OR expires_at > now())
ORDER BY id DESC LIMIT $4;

-- name: list_files_oldest
-- List a tenant's files behind $2, oldest first; of one purpose. Null stands for all.
SELECT * FROM files
WHERE tenant_id = $1 AND ($2::uuid IS NULL OR id > $2) AND ($3::text IS NULL OR purpose = $3)
    AND state = 'ready' AND purpose <> 'job_input' AND (expires_at IS NULL OR expires_at > now())
ORDER BY id LIMIT $4;

-- name: give_up_file
-- Let nobody read a file any more, unless a job uses it.
UPDATE files SET state = 'deleting'
WHERE id = $1 AND tenant_id = $2 AND state <> 'deleting'
    AND NOT EXISTS (SELECT FROM jobs WHERE ended_at IS NULL AND $1 IN (input_file, output_file, error_file));

-- name: erase_files
-- Let nobody read a tenant's files any more.
UPDATE files SET state = 'deleting' WHERE tenant_id = $1 AND state <> 'deleting';

-- name: expire_files
-- Let nobody read what has expired any more, unless a job uses it.
UPDATE files SET state = 'deleting'
WHERE expires_at <= now() AND state <> 'deleting' AND NOT EXISTS (SELECT FROM jobs WHERE ended_at IS NULL AND input_file = files.id);

-- name: list_dead_files
-- List files whose objects may go, oldest first.
SELECT id FROM files WHERE state = 'deleting' AND NOT is_deferred('file', id::text) ORDER BY id LIMIT $1;

-- name: drop_file
-- Delete the row of a file whose objects are gone.
DELETE FROM files WHERE id = $1 AND state = 'deleting';

-- name: find_known_files
-- Return those of the files $1 that have a row.
SELECT id FROM files WHERE id = ANY($1::uuid[]);

-- name: ensure_file_store
-- Give the store an id, unless it has one.
INSERT INTO file_store DEFAULT VALUES ON CONFLICT DO NOTHING;

-- name: find_file_store
-- Return the id of the store, and whether the store has it too.
SELECT id, is_written FROM file_store;

-- name: lock_file_store
-- Let other gateways that see the store for the first time wait until the end of the transaction.
SELECT id, is_written FROM file_store FOR UPDATE;

-- name: mark_file_store
-- Note that the store has its id.
UPDATE file_store SET is_written = true;

-- name: take_file_search
-- Return whether a gateway may look for objects without a row: once in $1 seconds.
UPDATE file_store SET searched_at = now() WHERE searched_at < now() - make_interval(secs => $1) RETURNING true;

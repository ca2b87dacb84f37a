-- name: fill_request_logs
-- Make the requests ($1) before a time ($2) within an interval ($3).
INSERT INTO request_logs_first (id, tenant_id, user_id, api_key_id, prompt_hash, model_used, response_time_ms, tokens_used,
    prompt_tokens, completion_tokens, status, created_at, cost_micro)
SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(noise, 1, 3) || '8'
    || substr(noise, 4, 15))::uuid, owner, owner,
    ('00000000-0000-4000-8000-' || lpad(to_hex(n % 50), 12, '0'))::uuid, noise || noise,
    CASE WHEN n % 100000 = 3 THEN 'rare' ELSE 'model-' || n % 4 END, 100 + n % 5000, 300, 10, 290,
    CASE WHEN n % 100000 = 6 THEN 'timeout' WHEN n % 100 = 0 THEN 'error' ELSE 'success' END, at,
    CASE n % 2 WHEN 0 THEN 300 ELSE 0 END
FROM (
    SELECT n, md5(n::text) AS noise, $2::timestamptz - n * ($3::interval / $1) AS at,
        ('00000000-0000-0000-0000-' || lpad(to_hex(CASE n % 3 WHEN 0 THEN 1 ELSE 2 + n % 1000 END), 12, '0'))::uuid AS owner
    FROM generate_series($1::integer, 1, -1) AS n
) AS made;

-- name: fill_reservations
-- Make the reservation of each request.
INSERT INTO reservations_first (request_id, owner, key_id, model, price_id, state, reserved_micro, settled_micro, prompt_tokens,
    completion_tokens, gateway, lease_until, created_at, ended_at)
SELECT id, tenant_id, api_key_id, model_used, 1, CASE WHEN cost_micro > 0 THEN 'settled' ELSE 'released' END,
    500, cost_micro, 10, 500, 'g', created_at, created_at, created_at
FROM request_logs_first;

-- name: fill_entries
-- Make the entries of each request that cost something.
INSERT INTO entries_first (id, transfer, kind, account, owner, amount_micro, at)
SELECT 2 * row_number() OVER () + side.place, id, 'usage', side.account, tenant_id,
    side.place * cost_micro - (1 - side.place) * cost_micro, created_at
FROM request_logs_first, (VALUES ('balance', 0), ('revenue', 1)) AS side (account, place)
WHERE cost_micro > 0;

-- name: make_price
-- Make the only price.
INSERT INTO prices (input_micro_per_million, output_micro_per_million, request_micro, compute_second_micro) VALUES (0, 1000000, 0, 0);

-- name: list_indexes
-- List the indexes of a partition ($1), and the constraints that own them.
SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition, conname,
    pg_get_constraintdef(pg_constraint.oid) AS rule
FROM pg_index LEFT JOIN pg_constraint ON conindid = indexrelid AND conrelid = indrelid WHERE indrelid = $1::regclass;

-- name: find_bounds
-- Find the bounds of a partition ($1).
SELECT partition_bounds(parent, since, until) FROM partitions WHERE name = $1;

-- name: continue_entries
-- Let the next entry get a new number.
SELECT setval(pg_get_serial_sequence('entries', 'id'), (SELECT max(id) FROM entries));

-- name: unguard_entries
-- Remove the index while the table is filled.
ALTER TABLE entry_keys DROP CONSTRAINT entry_keys_pkey;

-- name: fill_entry_keys
-- Make the key of each entry.
INSERT INTO entry_keys SELECT transfer, kind, account FROM entries;

-- name: guard_entries
-- Make the index again.
ALTER TABLE entry_keys ADD PRIMARY KEY (transfer, kind, account);

-- name: fill_accounts
-- Make the account of each owner.
INSERT INTO accounts (owner, balance_micro) SELECT owner, sum(amount_micro) FROM entries WHERE account = 'balance' GROUP BY owner;

-- name: fill_usage_rolls
-- Say that all of the last days ($1) but yesterday are rolled up.
INSERT INTO usage_rolls (day, is_stale, rolled_at)
SELECT day::date, day = today - 1, CASE WHEN day < today - 1 THEN now() END
FROM (SELECT (now() AT TIME ZONE 'UTC')::date) AS known (today),
    LATERAL generate_series((today - $1::integer)::timestamp, (today - 1)::timestamp, '1 day') AS day;

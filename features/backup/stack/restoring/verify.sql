-- name: make_index_check
-- For the superuser of a throw-away database: count each table's rows without an index and through each of its B-tree indexes, because the
-- wheel has no amcheck. A wrong page of an index is an error of the scan. Indexes that call functions of the database are left out: these would
-- run as the superuser. The changes to the catalog end with the transaction.
CREATE FUNCTION pg_temp.find_bad_indexes() RETURNS SETOF text LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    each record;
    by_table bigint;
    by_index bigint;
BEGIN
    FOR each IN
        SELECT
            x.indexrelid::oid AS id,
            x.indexrelid::regclass::text AS name,
            x.indrelid::oid AS table_id,
            x.indrelid::regclass::text AS table_name,
            coalesce(' WHERE ' || pg_get_expr(x.indpred, x.indrelid), '') AS condition,
            (
                SELECT string_agg(
                    pg_get_indexdef(x.indexrelid, n, true) || CASE x.indoption[n - 1] & 3
                        WHEN 1 THEN ' DESC NULLS LAST' WHEN 2 THEN ' NULLS FIRST' WHEN 3 THEN ' DESC' ELSE '' END, ', ' ORDER BY n
                )
                FROM generate_series(1, x.indnkeyatts) AS n
            ) AS keys
        FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indexrelid JOIN pg_am AS a ON a.oid = c.relam
        WHERE c.relkind = 'i' AND a.amname = 'btree' AND x.indisvalid AND c.relnamespace::regnamespace::text !~ '^(pg_|information_schema)'
            AND NOT EXISTS (
                SELECT FROM pg_depend AS d
                WHERE d.classid = 'pg_class'::regclass AND d.objid = x.indexrelid
                    AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_opclass'::regclass)
            )
    LOOP
        BEGIN
            PERFORM set_config('enable_seqscan', 'on', true), set_config('enable_indexscan', 'off', true),
                set_config('enable_indexonlyscan', 'off', true), set_config('enable_bitmapscan', 'off', true);
            EXECUTE format('SELECT count(*) FROM ONLY %s%s', each.table_name, each.condition) INTO by_table;
            -- Only this index is left to the planner.
            UPDATE pg_index SET indisvalid = indexrelid = each.id WHERE indrelid = each.table_id AND indisvalid <> (indexrelid = each.id);
            PERFORM set_config('enable_seqscan', 'off', true), set_config('enable_sort', 'off', true),
                set_config('enable_indexscan', 'on', true), set_config('enable_indexonlyscan', 'on', true);
            EXECUTE format('SELECT count(*) FROM (SELECT FROM ONLY %s%s ORDER BY %s) AS ordered', each.table_name, each.condition, each.keys)
                INTO by_index;
            IF by_index <> by_table THEN
                RETURN NEXT format('the index %s has %s rows, and its table %s', each.name, by_index, by_table);
            END IF;
        EXCEPTION WHEN data_corrupted OR index_corrupted OR internal_error THEN
            RETURN NEXT format('%s: %s', each.name, SQLERRM);
        END;
    END LOOP;
END
$$;

-- name: allow_catalog_changes
-- Until the end of the transaction.
SET LOCAL allow_system_table_mods = on;

-- name: find_bad_indexes
-- One sentence for each.
SELECT find_bad_indexes FROM pg_temp.find_bad_indexes();

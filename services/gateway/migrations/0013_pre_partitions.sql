-- The third step, which changes the catalog only: a partitioned table takes the name of each of the three, and the table becomes its first
-- partition.
SET LOCAL lock_timeout = '200ms';

-- Row-level security of one table for another, which may be asked for by its own name.
CREATE FUNCTION copy_policies(from_table regclass, to_table regclass) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    policy record;
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', to_table);
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', to_table);
    FOR policy IN SELECT polname, pg_get_expr(polqual, polrelid) AS condition FROM pg_policy WHERE polrelid = from_table LOOP
        EXECUTE format('CREATE POLICY %I ON %s USING (%s)', policy.polname, to_table, policy.condition);
    END LOOP;
END
$$;

-- What a partition needs that LIKE does not copy, before it is attached; indexes, foreign keys and row triggers come with that.
CREATE FUNCTION make_partition(the_parent text, the_name text) RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL EXCLUDING INDEXES EXCLUDING IDENTITY)', the_name, the_parent);
    PERFORM copy_policies(the_parent::regclass, the_name::regclass);
    IF the_parent = 'entries' THEN
        EXECUTE format('CREATE TRIGGER entries_stay BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', the_name);
    END IF;
END
$$;

-- How a partition is bounded: entries by their time, the others by the time that their id names.
CREATE FUNCTION partition_bounds(the_parent text, since timestamptz, until timestamptz) RETURNS text LANGUAGE sql STABLE
SET search_path FROM CURRENT AS $$
    SELECT format(
        'FOR VALUES FROM (%s) TO (%s)',
        CASE WHEN since = '-infinity' THEN 'MINVALUE' WHEN the_parent = 'entries' THEN quote_literal(since) ELSE quote_literal(smallest_id(since)) END,
        CASE WHEN the_parent = 'entries' THEN quote_literal(until) ELSE quote_literal(smallest_id(until)) END
    )
$$;

-- For this migration alone, which drops it at its end: the role may make no temporary objects. It names no column but the key, so that
-- columns and indexes of other migrations come along.
CREATE FUNCTION partition_by(the_table text, the_key text, keeps_primary_key boolean) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    first_name text := the_table || '_first';
    indexes text[];
    constraints text[];
    item record;
    statement text;
BEGIN
    FOR item IN
        SELECT relname, pg_get_indexdef(indexrelid) AS definition FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
        WHERE indrelid = the_table::regclass AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND conrelid = indrelid)
    LOOP
        indexes := indexes || item.definition;
        EXECUTE format('ALTER INDEX %I RENAME TO %I', item.relname, item.relname || '_of_first');
    END LOOP;
    FOR item IN
        SELECT conname, contype, pg_get_constraintdef(oid) AS definition FROM pg_constraint
        WHERE conrelid = the_table::regclass AND (contype = 'f' OR keeps_primary_key AND contype IN ('p', 'u'))
    LOOP
        constraints := constraints || format('ALTER TABLE %I ADD CONSTRAINT %I %s', the_table, item.conname, item.definition);
        EXECUTE format('ALTER TABLE %I RENAME CONSTRAINT %I TO %I', the_table, item.conname, item.conname || '_of_first');
    END LOOP;
    EXECUTE format('ALTER TABLE %I RENAME TO %I', the_table, first_name);
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL EXCLUDING INDEXES) PARTITION BY RANGE (%I)', the_table, first_name, the_key);
    EXECUTE format('ALTER TABLE %I DROP CONSTRAINT %I', the_table, the_table || '_bound');
    FOREACH statement IN ARRAY constraints || indexes LOOP
        EXECUTE statement;
    END LOOP;
    PERFORM copy_policies(first_name::regclass, the_table::regclass);
    FOR item IN
        SELECT grantee, privilege_type FROM pg_class, aclexplode(relacl)
        WHERE pg_class.oid = first_name::regclass AND grantee <> relowner AND grantee <> 0
    LOOP
        EXECUTE format('GRANT %s ON %I TO %s', item.privilege_type, the_table, item.grantee::regrole);
    END LOOP;
END
$$;

CREATE FUNCTION attach_first(the_table text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format(
        'ALTER TABLE %I ATTACH PARTITION %I %s', the_table, the_table || '_first',
        (SELECT partition_bounds(parent, since, until) FROM partitions WHERE name = the_table || '_first')
    );
    EXECUTE format('ALTER TABLE %I DROP CONSTRAINT %I', the_table || '_first', the_table || '_bound');
    -- Takes what has no partition, so that a request never fails for the want of one.
    PERFORM make_partition(the_table, the_table || '_default');
    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I DEFAULT', the_table, the_table || '_default');
END
$$;

LOCK TABLE request_logs, reservations, entries IN ACCESS EXCLUSIVE MODE;

SELECT partition_by('request_logs', 'id', true), attach_first('request_logs');
SELECT partition_by('reservations', 'request_id', true), attach_first('reservations');

-- Entries are told apart by the guard, and their own id, which nothing refers to, only puts them in order.
DROP TRIGGER entries_are_immutable ON entries;
DROP TRIGGER entries_are_unique ON entries;
SELECT partition_by('entries', 'at', false);
DO $$
DECLARE
    next_id bigint;
BEGIN
    SELECT nextval(pg_get_serial_sequence('entries_first', 'id')) INTO next_id;
    EXECUTE format('ALTER TABLE entries ALTER COLUMN id RESTART WITH %s', next_id);
END
$$;
ALTER TABLE entries_first ALTER COLUMN id DROP IDENTITY;
ALTER TABLE entries_first DROP CONSTRAINT entries_transfer_kind_account_key;
SELECT attach_first('entries');
CREATE TRIGGER entries_are_unique BEFORE INSERT ON entries FOR EACH ROW EXECUTE FUNCTION claim_entry_key();
CREATE TRIGGER entries_are_immutable BEFORE UPDATE OR DELETE ON entries FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER entries_stay BEFORE TRUNCATE ON entries FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

DROP FUNCTION partition_by(text, text, boolean);
DROP FUNCTION attach_first(text);

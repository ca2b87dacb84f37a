-- request_logs, reservations and entries become partitioned tables in three steps, 0011 to 0013. Each table as it is becomes the first
-- partition; no row is copied. No lock that stops readers or writers is held or waited for longer than a second, so the version before
-- this one keeps serving meanwhile. This step says where the first partition ends, without looking at the rows.
SET LOCAL lock_timeout = '200ms';

-- The smallest UUIDv7 of a moment; the largest UUID for a moment after the last one that a UUIDv7 can have.
CREATE FUNCTION smallest_id(moment timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN milliseconds < 0 THEN '00000000-0000-0000-0000-000000000000'::uuid
        WHEN milliseconds >= 281474976710656 THEN 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid
        ELSE (lpad(to_hex(milliseconds), 12, '0') || '00000000000000000000')::uuid END
    FROM (SELECT (extract(epoch FROM moment) * 1000)::bigint) AS given (milliseconds)
$$;

-- The moment that a UUIDv7 names.
CREATE FUNCTION moment_of_id(id uuid) RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT to_timestamp(('x' || substr(replace(id::text, '-', ''), 1, 12))::bit(48)::bigint / 1000.0)
$$;

-- The names and bounds of all partitions but the default ones.
CREATE TABLE partitions (
    name text PRIMARY KEY,
    parent text NOT NULL,
    -- Of request_logs and reservations, by the moment that the id names.
    since timestamptz NOT NULL,
    until timestamptz NOT NULL
);

-- At least one whole period from now, so that requests keep coming while the following steps run; and not before the last row, should the
-- clock of a gateway have been ahead.
INSERT INTO partitions (name, parent, since, until)
SELECT parent || '_first', parent, '-infinity', date_trunc(period, greatest(now(), last_row) + 2 * ('1 ' || period)::interval, 'UTC')
FROM (VALUES
    ('request_logs', 'week', (SELECT moment_of_id(id) FROM request_logs ORDER BY id DESC LIMIT 1)),
    ('reservations', 'month', (SELECT moment_of_id(request_id) FROM reservations ORDER BY request_id DESC LIMIT 1)),
    ('entries', 'month', NULL)
) AS given (parent, period, last_row);

DO $$
DECLARE
    until timestamptz;
BEGIN
    SELECT partitions.until INTO until FROM partitions WHERE parent = 'request_logs';
    EXECUTE format('ALTER TABLE request_logs ADD CONSTRAINT request_logs_bound CHECK (id < %L) NOT VALID', smallest_id(until));
    SELECT partitions.until INTO until FROM partitions WHERE parent = 'reservations';
    EXECUTE format('ALTER TABLE reservations ADD CONSTRAINT reservations_bound CHECK (request_id < %L) NOT VALID', smallest_id(until));
    SELECT partitions.until INTO until FROM partitions WHERE parent = 'entries';
    EXECUTE format('ALTER TABLE entries ADD CONSTRAINT entries_bound CHECK (at < %L) NOT VALID', until);
END
$$;

-- Makes payments exactly-once: a UNIQUE of partitions by month would have to contain the month. It is never partitioned, and no row ever
-- leaves it.
CREATE TABLE entry_keys (
    transfer uuid NOT NULL,
    kind varchar(10) NOT NULL,
    account varchar(10) NOT NULL,
    PRIMARY KEY (transfer, kind, account)
);
CREATE TRIGGER entry_keys_are_immutable BEFORE UPDATE OR DELETE ON entry_keys FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER entry_keys_stay BEFORE TRUNCATE ON entry_keys FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE FUNCTION claim_entry_key() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO entry_keys (transfer, kind, account) VALUES (NEW.transfer, NEW.kind, NEW.account);
    RETURN NEW;
END
$$;

CREATE TRIGGER entries_are_unique BEFORE INSERT ON entries FOR EACH ROW EXECUTE FUNCTION claim_entry_key();

-- name: read_site_lease
-- Read whether this site may run requests; no row if there are no rules.
SELECT * FROM current_site_lease;

-- name: lock_site_lease
-- Wait until the running reservations are committed, and let no other begin.
LOCK TABLE site_lease IN EXCLUSIVE MODE;

-- name: set_site_lease
-- Change the lease; no row if the term is older or has ended.
WITH written AS (
    INSERT INTO site_lease AS held (term, site, state, ends_at, changed_at, replaced_by, replaced_url)
    VALUES ($1, $2, $3, $5::timestamptz + make_interval(secs => $4::double precision), clock_timestamp(), $6, $7)
    ON CONFLICT (is_only) DO UPDATE
    SET term = excluded.term, site = excluded.site, state = excluded.state, ends_at = excluded.ends_at, changed_at = excluded.changed_at,
        replaced_by = excluded.replaced_by, replaced_url = excluded.replaced_url
    WHERE excluded.term > held.term OR (excluded.term = held.term AND held.state <> 'ended')
    RETURNING term
)
SELECT term, pg_notify('gateway_site_lease', '') FROM written;

-- name: begin_term
-- Forget the lease of the site from which this database was restored. The agent activates the new one.
INSERT INTO site_lease AS held (term, site, state, changed_at) VALUES ($1, '', 'suspended', clock_timestamp())
ON CONFLICT (is_only) DO UPDATE
SET term = excluded.term, site = '', state = 'suspended', ends_at = NULL, changed_at = clock_timestamp(), replaced_by = NULL,
    replaced_url = NULL
WHERE held.term < excluded.term;

-- Whether this site may run requests. Without a row there are no rules about sites.

CREATE TABLE site_lease (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    term bigint NOT NULL CHECK (term > 0),
    site text NOT NULL,
    state text NOT NULL CHECK (state IN ('active', 'suspended', 'ended')),
    -- Null for no limit.
    ends_at timestamptz,
    changed_at timestamptz NOT NULL,
    replaced_by text,
    replaced_url text
);

-- By the clock as it is now, not as it was when the transaction began. A clock that was set back before the last change proves nothing.
CREATE VIEW current_site_lease AS
SELECT term, site, ends_at, changed_at, replaced_by, replaced_url, clock_timestamp() AS now,
    CASE
        WHEN state = 'active' AND ends_at IS NOT NULL AND clock_timestamp() NOT BETWEEN changed_at - interval '5 seconds' AND ends_at
            THEN 'suspended'
        ELSE state
    END AS state
FROM site_lease;

-- Whether requests may be reserved. The lock lasts until the reservations are committed: whoever ends the lease waits for them.
CREATE FUNCTION site_may_reserve() RETURNS boolean LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    LOCK TABLE site_lease IN ROW SHARE MODE;
    RETURN NOT EXISTS (SELECT FROM current_site_lease WHERE state <> 'active');
END
$$;

-- Items of background work that failed, until they succeed; as in the schema of the gateway.
SET LOCAL lock_timeout = '1s';

CREATE TABLE deferred_items (
    kind varchar(40) NOT NULL,
    id varchar(200) NOT NULL,
    tries integer NOT NULL,
    -- NULL: it rests until somebody retries it.
    next_at timestamptz,
    error varchar(300) NOT NULL,
    since timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (kind, id)
);

-- Whether an item waits after a failure. What takes items leaves these out.
CREATE FUNCTION is_deferred(kind text, id text) RETURNS boolean LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT EXISTS (
        SELECT FROM deferred_items AS items
        WHERE items.kind = is_deferred.kind AND items.id = left(is_deferred.id, 200) AND (items.next_at IS NULL OR items.next_at > now())
    )
$$;

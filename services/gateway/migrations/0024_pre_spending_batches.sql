-- Ceilings of targets for a whole batch of requests at once. One update for each request and target, and one of each reservation, halved the
-- requests per second.
SET LOCAL lock_timeout = '1s';

-- What open reservations hold of the ceilings of targets, all of one route. Without holds a request has no row. Changed under `lock_spending`.
CREATE TABLE target_holds (
    request_id uuid PRIMARY KEY,
    day date NOT NULL,
    route varchar(100) NOT NULL,
    targets varchar(200)[] NOT NULL,
    micros bigint[] NOT NULL
);

-- Older gateways keep their holds in the reservations' columns, with hold_target, spend_target and the trigger, until they are replaced.

-- Holds what requests that were reserved in this transaction may cost at targets, in this order. Returns what would exceed a day's ceiling; of
-- repeated requests, what they don't hold. Planning each call would cost more than the rest, and a plan for the few rows of a new table would
-- read all of them later.
CREATE FUNCTION hold_targets(requests uuid[], are_repeated boolean[], routes text[], targets text[], micros bigint[], ceilings bigint[])
RETURNS TABLE (over_request uuid, over_target text) LANGUAGE plpgsql
SET search_path FROM CURRENT SET plan_cache_mode TO force_generic_plan SET enable_seqscan TO off AS $$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
    one record;
    the_route text;
    the_target text;
    used_micro bigint;
    held_micro bigint := 0;
    held bigint[] := '{}';
BEGIN
    IF requests IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY
    SELECT request, target
    FROM unnest(requests, are_repeated, targets) AS wanted (request, is_repeated, target) LEFT JOIN target_holds ON request_id = request
    WHERE is_repeated AND wanted.target = ANY (target_holds.targets) IS NOT TRUE;
    PERFORM lock_spending();
    FOR one IN
        SELECT *
        FROM unnest(requests, are_repeated, routes, targets, micros, ceilings) WITH ORDINALITY
            AS wanted (request, is_repeated, route, target, micro, ceiling, number)
        WHERE NOT is_repeated
        ORDER BY route, target, number
    LOOP
        IF one.route IS DISTINCT FROM the_route OR one.target IS DISTINCT FROM the_target THEN
            UPDATE target_spending SET reserved_micro = reserved_micro + held_micro WHERE day = today AND route = the_route AND target = the_target;
            the_route := one.route;
            the_target := one.target;
            held_micro := 0;
            INSERT INTO target_spending (day, route, target) VALUES (today, the_route, the_target) ON CONFLICT DO NOTHING;
            SELECT reserved_micro + spent_micro INTO used_micro FROM target_spending WHERE day = today AND route = the_route AND target = the_target;
        END IF;
        IF used_micro + held_micro + one.micro <= one.ceiling THEN
            held_micro := held_micro + one.micro;
            held := held || one.number;
        ELSE
            over_request := one.request;
            over_target := one.target;
            RETURN NEXT;
        END IF;
    END LOOP;
    UPDATE target_spending SET reserved_micro = reserved_micro + held_micro WHERE day = today AND route = the_route AND target = the_target;
    INSERT INTO target_holds
    SELECT requests[number], today, min(routes[number]), array_agg(hold_targets.targets[number]), array_agg(hold_targets.micros[number])
    FROM unnest(held) AS number GROUP BY 1;
END
$$;

-- Releases what ended requests held, and adds what requests cost.
CREATE FUNCTION spend_targets(ended uuid[], days date[], routes text[], targets text[], micros bigint[]) RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT SET plan_cache_mode TO force_generic_plan SET enable_seqscan TO off AS $$
BEGIN
    IF days IS NULL AND NOT EXISTS (SELECT FROM target_holds WHERE request_id = ANY (ended)) THEN
        RETURN;
    END IF;
    PERFORM lock_spending();
    WITH released AS (DELETE FROM target_holds WHERE request_id = ANY (ended) RETURNING *)
    UPDATE target_spending AS spending SET reserved_micro = spending.reserved_micro - sums.micro
    FROM (
        SELECT day, route, held.target, sum(held.micro) AS micro
        FROM released, unnest(released.targets, released.micros) AS held (target, micro) GROUP BY 1, 2, 3
    ) AS sums
    WHERE spending.day = sums.day AND spending.route = sums.route AND spending.target = sums.target;
    IF days IS NOT NULL THEN
        INSERT INTO target_spending AS known (day, route, target, spent_micro)
        SELECT day, route, target, sum(micro) FROM unnest(days, routes, targets, micros) AS cost (day, route, target, micro) GROUP BY 1, 2, 3
        ON CONFLICT (day, route, target) DO UPDATE SET spent_micro = known.spent_micro + excluded.spent_micro;
    END IF;
END
$$;

-- As in 0003, with holds.
CREATE OR REPLACE FUNCTION release_what_was_taken_over() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF settle(OLD.request_id, 0, 'expired') IS NOT NULL THEN
        PERFORM spend_targets(ARRAY[OLD.request_id], NULL, NULL, NULL, NULL);
    END IF;
    RETURN NULL;
END
$$;

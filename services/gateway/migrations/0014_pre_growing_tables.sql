-- Keeps the growing tables cheap: partitions are added ahead of time and old ones dropped, and the sums of a day grow by pieces.
SET LOCAL lock_timeout = '200ms';

-- Adds one partition that is missing before now + ahead; its name, or NULL where none is missing or another gateway is at it. ATTACH locks
-- nobody out of the parent, and the default partition for a moment.
CREATE FUNCTION add_partition(ahead interval) RETURNS text LANGUAGE plpgsql SET search_path FROM CURRENT SET lock_timeout = '200ms' AS $$
DECLARE
    due record;
    name text;
    rest text;
    within text;
    has_strays boolean;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('aimesh.gateway.partitions', 0)) THEN
        RETURN NULL;
    END IF;
    SELECT parent, max(until) AS since INTO due FROM partitions GROUP BY parent HAVING max(until) < now() + ahead ORDER BY 2, 1 LIMIT 1;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT p.parent, p.since, (p.since AT TIME ZONE 'UTC' + p.period) AT TIME ZONE 'UTC' AS until, p.key INTO due
    FROM (
        SELECT due.parent, due.since, CASE due.parent WHEN 'request_logs' THEN interval '1 week' ELSE interval '1 month' END,
            CASE due.parent WHEN 'request_logs' THEN 'id' WHEN 'reservations' THEN 'request_id' ELSE 'at' END
    ) AS p (parent, since, period, key);
    name := due.parent || to_char(due.since AT TIME ZONE 'UTC', '_YYYYMMDD');
    rest := due.parent || '_default';
    PERFORM make_partition(due.parent, name);
    -- Rows of its time that came before it did lie in the default partition, and PostgreSQL attaches nothing before they have left it.
    EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', rest);
    within := CASE WHEN due.parent = 'entries' THEN format('%1$I >= %2$L AND %1$I < %3$L', due.key, due.since, due.until)
        ELSE format('%1$I >= %2$L AND %1$I < %3$L', due.key, smallest_id(due.since), smallest_id(due.until)) END;
    EXECUTE format('SELECT EXISTS (SELECT FROM %I WHERE %s)', rest, within) INTO has_strays;
    IF has_strays THEN
        EXECUTE format('ALTER TABLE %I DISABLE TRIGGER USER', rest);
        EXECUTE format('WITH moved AS (DELETE FROM %I WHERE %s RETURNING *) INSERT INTO %I SELECT * FROM moved', rest, within, name);
        EXECUTE format('ALTER TABLE %I ENABLE TRIGGER USER', rest);
    END IF;
    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I %s', due.parent, name, partition_bounds(due.parent, due.since, due.until));
    INSERT INTO partitions (name, parent, since, until) VALUES (name, due.parent, due.since, due.until);
    RETURN name;
EXCEPTION WHEN lock_not_available THEN
    RETURN NULL;
END
$$;

-- Drops one partition of the request log, all of whose rows are older than so many days and whose days are summed up for good; its name, or
-- NULL. Partitions of the ledger are never dropped.
CREATE FUNCTION drop_partition(the_days integer) RETURNS text LANGUAGE plpgsql SET search_path FROM CURRENT SET lock_timeout = '200ms' AS $$
DECLARE
    old text;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('aimesh.gateway.partitions', 0)) THEN
        RETURN NULL;
    END IF;
    SELECT name INTO old FROM partitions
    WHERE parent = 'request_logs' AND until < now() - make_interval(days => the_days)
        AND NOT EXISTS (SELECT FROM usage_rolls WHERE NOT is_final AND day::timestamp AT TIME ZONE 'UTC' < until)
    ORDER BY until LIMIT 1;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    EXECUTE format('DROP TABLE %I', old);
    DELETE FROM partitions WHERE name = old;
    RETURN old;
EXCEPTION WHEN lock_not_available THEN
    RETURN NULL;
END
$$;

-- The first partition begins with the first request ever, and the default one has no bounds: their old rows go one by one.
CREATE FUNCTION end_old_requests(the_days integer, most integer) RETURNS integer LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    name text;
    gone integer;
    total integer := 0;
BEGIN
    FOREACH name IN ARRAY ARRAY['request_logs_first', 'request_logs_default'] LOOP
        CONTINUE WHEN to_regclass(name) IS NULL;
        EXECUTE format(
            'DELETE FROM %1$I WHERE id IN ('
            '    SELECT id FROM %1$I'
            '    WHERE created_at < now() - make_interval(days => $1)'
            '        AND (created_at AT TIME ZONE ''UTC'')::date IN (SELECT day FROM usage_rolls WHERE is_final)'
            '    LIMIT $2)',
            name
        ) USING the_days, most - total;
        GET DIAGNOSTICS gone = ROW_COUNT;
        total := total + gone;
    END LOOP;
    RETURN total;
END
$$;

-- --- the sums of a day -------------------------------------------------------------------------------------------------------------

-- All requests of the day that began before this moment are in usage_days. Requests that come later add themselves, so nothing is summed
-- up twice. `is_stale` and `rolled_at` together say that the version before this one wants the whole day summed up again.
ALTER TABLE usage_rolls ADD COLUMN rolled_until timestamptz;

-- A request as one row of usage_days has it; a thumb counts for the day of its request. A request that was rejected is in no number of
-- requests and begins no conversation. Its tokens count, as those of every row: it has some only where a stream broke off by its caller's
-- fault, and those were made.
CREATE VIEW request_usage WITH (security_invoker) AS
SELECT log.id, log.created_at, (log.created_at AT TIME ZONE 'UTC')::date AS day,
    log.tenant_id, log.user_id, log.model_used AS model, log.worker_owner, log.worker_labels,
    (log.status = 'success')::integer AS succeeded,
    (log.status = 'error')::integer AS failed,
    (log.status = 'timeout')::integer AS timed_out,
    (log.status = 'cancelled')::integer AS cancelled,
    (log.status = 'limited')::integer AS limited,
    log.prompt_tokens, log.completion_tokens, log.cost_micro,
    CASE WHEN log.status = 'success' THEN log.response_time_ms ELSE 0 END AS response_ms,
    CASE WHEN log.status = 'success' AND NOT log.cached THEN log.completion_tokens ELSE 0 END AS made_tokens,
    CASE WHEN log.status = 'success' AND NOT log.cached THEN log.response_time_ms ELSE 0 END AS made_ms,
    log.cached::integer AS cached,
    log.saved_micro,
    (log.begins_conversation AND log.status NOT IN ('limited', 'rejected'))::integer AS conversations,
    coalesce(feedback.rating > 0, false)::integer AS thumbs_up,
    coalesce(feedback.rating < 0, false)::integer AS thumbs_down
FROM request_logs AS log
LEFT JOIN feedback ON feedback.request_id = log.id;

-- A piece of a day, from the request log.
CREATE FUNCTION usage_of_time(since timestamptz, until timestamptz) RETURNS SETOF usage_days LANGUAGE sql STABLE
SET search_path FROM CURRENT AS $$
    SELECT day, tenant_id, user_id, model, worker_owner, worker_labels,
        sum(succeeded)::integer, sum(failed)::integer, sum(timed_out)::integer, sum(cancelled)::integer, sum(limited)::integer,
        sum(prompt_tokens)::bigint, sum(completion_tokens)::bigint, sum(cost_micro)::bigint,
        sum(response_ms)::bigint, sum(made_tokens)::bigint, sum(made_ms)::bigint,
        sum(cached)::integer, sum(saved_micro)::bigint, sum(conversations)::integer,
        sum(thumbs_up)::integer, sum(thumbs_down)::integer
    FROM request_usage
    WHERE created_at >= since AND created_at < until
    GROUP BY day, tenant_id, user_id, model, worker_owner, worker_labels
$$;

-- The pieces of a day as one.
CREATE FUNCTION join_pieces(the_day date) RETURNS void LANGUAGE sql SET search_path FROM CURRENT AS $$
    WITH pieces AS (DELETE FROM usage_days WHERE day = the_day RETURNING *)
    INSERT INTO usage_days
    SELECT day, tenant_id, user_id, model, worker_owner, worker_labels,
        sum(succeeded), sum(failed), sum(timed_out), sum(cancelled), sum(limited), sum(prompt_tokens), sum(completion_tokens),
        sum(cost_micro), sum(response_ms), sum(made_tokens), sum(made_ms), sum(cached), sum(saved_micro), sum(conversations),
        sum(thumbs_up), sum(thumbs_down)
    FROM pieces
    GROUP BY day, tenant_id, user_id, model, worker_owner, worker_labels
$$;

-- Until when the requests of a day are in usage_days.
CREATE FUNCTION summed_until(roll usage_rolls) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN roll.rolled_at IS NULL THEN coalesce(roll.rolled_until, roll.day::timestamp AT TIME ZONE 'UTC')
        WHEN roll.is_stale AND NOT roll.is_final THEN roll.day::timestamp AT TIME ZONE 'UTC'
        ELSE (roll.day + 1)::timestamp AT TIME ZONE 'UTC' END
$$;

-- Some days: what is summed up, and the rest from the request log.
CREATE FUNCTION usage_between(first_day date, last_day date) RETURNS SETOF usage_days LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    WITH days AS (
        SELECT a_day::date AS day, a_day AT TIME ZONE 'UTC' AS since, (a_day + interval '1 day') AT TIME ZONE 'UTC' AS until,
            coalesce((SELECT summed_until(roll) FROM usage_rolls AS roll WHERE roll.day = a_day::date), a_day AT TIME ZONE 'UTC') AS summed_until
        FROM generate_series(first_day::timestamp, least(last_day, (now() AT TIME ZONE 'UTC')::date)::timestamp, '1 day') AS a_day
    )
    SELECT usage_days.* FROM usage_days JOIN days USING (day) WHERE days.summed_until > days.since
    UNION ALL
    SELECT live.* FROM days, LATERAL usage_of_time(days.summed_until, days.until) AS live WHERE days.summed_until < days.until
$$;

-- Requests that come when their time is summed up already. The roll stays five minutes behind and no statement runs for three, so a younger
-- request is never late. The lock waits for a roll, which waits for the lock: either the roll sees these requests, or they see the roll.
CREATE FUNCTION add_late_requests() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM added WHERE created_at < now() - interval '2 minutes') THEN
        RETURN NULL;
    END IF;
    INSERT INTO usage_rolls (day)
    SELECT DISTINCT (created_at AT TIME ZONE 'UTC')::date FROM added WHERE created_at < now() - interval '2 minutes' ORDER BY 1
    ON CONFLICT DO NOTHING;
    PERFORM FROM usage_rolls WHERE day IN (SELECT (created_at AT TIME ZONE 'UTC')::date FROM added) ORDER BY day FOR SHARE;
    INSERT INTO usage_days
    SELECT late.day, late.tenant_id, late.user_id, late.model, late.worker_owner, late.worker_labels, late.succeeded, late.failed,
        late.timed_out, late.cancelled, late.limited, late.prompt_tokens, late.completion_tokens, late.cost_micro, late.response_ms,
        late.made_tokens, late.made_ms, late.cached, late.saved_micro, late.conversations, late.thumbs_up, late.thumbs_down
    FROM request_usage AS late JOIN usage_rolls AS roll USING (day)
    WHERE late.id IN (SELECT id FROM added) AND late.created_at < summed_until(roll) AND NOT roll.is_final;
    RETURN NULL;
END
$$;

CREATE TRIGGER requests_come_late AFTER INSERT ON request_logs REFERENCING NEW TABLE AS added
FOR EACH STATEMENT EXECUTE FUNCTION add_late_requests();

-- Thumbs likewise.
CREATE FUNCTION add_late_thumb() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    rated request_usage;
    ups integer := 0;
    downs integer := 0;
BEGIN
    IF TG_OP <> 'INSERT' THEN
        ups := ups - (OLD.rating > 0)::integer;
        downs := downs - (OLD.rating < 0)::integer;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        ups := ups + (NEW.rating > 0)::integer;
        downs := downs + (NEW.rating < 0)::integer;
    END IF;
    SELECT * INTO rated FROM request_usage WHERE id = coalesce(NEW.request_id, OLD.request_id) AND created_at < now() - interval '2 minutes';
    IF NOT FOUND OR (ups = 0 AND downs = 0) THEN
        RETURN NULL;
    END IF;
    PERFORM FROM usage_rolls WHERE day = rated.day FOR SHARE;
    INSERT INTO usage_days
    SELECT rated.day, rated.tenant_id, rated.user_id, rated.model, rated.worker_owner, rated.worker_labels,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ups, downs
    FROM usage_rolls AS roll WHERE roll.day = rated.day AND rated.created_at < summed_until(roll) AND NOT roll.is_final;
    RETURN NULL;
END
$$;

CREATE TRIGGER thumbs_come_late AFTER INSERT OR UPDATE OR DELETE ON feedback FOR EACH ROW EXECUTE FUNCTION add_late_thumb();

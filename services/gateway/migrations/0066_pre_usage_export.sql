-- Only what has changed is read for the files beside the recovery log, and everything by day.
SET LOCAL lock_timeout = '1s';

ALTER TABLE usage_sink_accounts
    -- The last transaction that changed it.
    ADD COLUMN changed_by bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
    DROP CONSTRAINT usage_sink_accounts_pkey,
    ADD PRIMARY KEY (since, sink, owner, is_kept);

CREATE INDEX usage_sink_accounts_by_change ON usage_sink_accounts (changed_by);

-- Export the refund of a request, and return the event's id.
CREATE FUNCTION export_refund(the_request uuid) RETURNS uuid LANGUAGE sql SET search_path FROM CURRENT AS $$
    INSERT INTO usage_outbox (id, owner, key_id, model, prompt_tokens, completion_tokens, covered_tokens, cost_micro, is_refund, created_at, is_batch)
    -- If the request was not exported, none of its tokens are counted as paid for.
    SELECT derive_id('refund', the_request), held.owner, held.key_id, held.model, -coalesce(request.prompt_tokens, held.covered_tokens),
        -coalesce(request.completion_tokens, 0), -held.covered_tokens, -settled_micro, true, held.created_at,
        coalesce(request.is_batch, held.is_batch)
    FROM reservations AS held LEFT JOIN usage_outbox AS request ON request.id = the_request
    WHERE request_id = the_request
    RETURNING id
$$;

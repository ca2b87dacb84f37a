-- Replaying 20,000 revoked nodes raised the list's number 20,000 times, in as many versions of its one row. A restore raises number and epoch
-- above every published one at its end (the query raise_list), so nothing is to do while the log is replayed.

CREATE OR REPLACE FUNCTION revocations_changed() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF current_setting('aimesh.recovery_log', true) = 'off' THEN
        RETURN NULL;
    END IF;
    UPDATE mesh_state SET
        number = greatest(number + 1, extract(epoch FROM now())::bigint),
        last_revoked_at = now(),
        epoch = CASE WHEN epoch_changed_at > now() - interval '1 hour' THEN epoch ELSE epoch + 1 END,
        epoch_changed_at = CASE WHEN epoch_changed_at > now() - interval '1 hour' THEN epoch_changed_at ELSE now() END;
    RETURN NULL;
END
$$;

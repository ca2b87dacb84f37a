-- Whether another gateway has taken a request over, as of now: the snapshot of the statement that calls it is older than what `settle` waited
-- for, and a VOLATILE function in plpgsql takes a newer one.
CREATE FUNCTION was_taken_over(the_request uuid) RETURNS boolean LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT AS $$
BEGIN
    RETURN EXISTS (SELECT FROM reservations WHERE request_id = the_request AND state = 'expired');
END
$$;

-- Which route and target served a request. All columns have constant defaults, so no table is rewritten.
SET LOCAL lock_timeout = '1s';

ALTER TABLE request_logs
    -- Null without a route.
    ADD COLUMN route varchar(100),
    ADD COLUMN route_version integer,
    -- The target that was drawn; null if the route has no shares.
    ADD COLUMN variant varchar(100),
    -- The target that served the request, or was tried last.
    ADD COLUMN target varchar(100);

-- Of the last claim, which also sets the reservation's model and price.
ALTER TABLE reservations
    ADD COLUMN route varchar(100),
    ADD COLUMN route_version integer,
    ADD COLUMN variant varchar(100),
    ADD COLUMN target varchar(100);

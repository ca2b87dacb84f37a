-- ARGV: now, hash of a link's token
-- Returns the link, or nil.
return redis.call('GET', link_key(ARGV[2])) or nil

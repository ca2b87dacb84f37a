-- Record that a password or a code was entered again.
-- ARGV: now, id, then fields and values
-- Returns 1, or 0 if the session has ended.
if not read(ARGV[2], tonumber(ARGV[1])) then
    return 0
end
redis.call('HSET', record_key(ARGV[2]), unpack(ARGV, 3))
return 1

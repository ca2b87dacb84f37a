-- ARGV: now, life in ms, most per user, user, hash of the link's token, the link
-- Of more than `most`, the oldest end.
local now, life, most, index = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), links_key(ARGV[4])
redis.call('ZREMRANGEBYSCORE', index, '-inf', now - life / 1000)
redis.call('SET', link_key(ARGV[5]), ARGV[6], 'PX', life)
redis.call('ZADD', index, ARGV[1], ARGV[5])
redis.call('PEXPIRE', index, life)
for _, oldest in ipairs(redis.call('ZRANGE', index, 0, -1 - most)) do
    take_link(ARGV[4], oldest)
end
return 1

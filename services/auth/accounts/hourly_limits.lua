-- Count one under KEYS[1]: at most ARGV[1] in ARGV[2] ms after the first. Returns 0 if it was counted, otherwise the ms to wait.
local counted = tonumber(redis.call('GET', KEYS[1]) or '0')
if counted >= tonumber(ARGV[1]) then
    return math.max(1, redis.call('PTTL', KEYS[1]))
end
if redis.call('INCR', KEYS[1]) == 1 then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0

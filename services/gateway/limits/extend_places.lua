-- Extends the places of requests that still run. local_limits.py does the same in Python.
--
-- KEYS: for each place the counter of those that run at once
-- ARGV: seconds now (empty: the server's clock), seconds of the lease, then for each place its request id
-- Returns how many there are

local SLACK_MS = 60000

local now = tonumber(ARGV[1])
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local lease = tonumber(ARGV[2])
local lease_ms = math.ceil(lease * 1000)

for i = 1, #KEYS do
    -- Also one that is not there any more: it was forgotten while Valkey or this gateway was away, and its request runs.
    redis.call('ZADD', KEYS[i], string.format('%.17g', now + lease), ARGV[i + 2])
    if redis.call('PTTL', KEYS[i]) < lease_ms + SLACK_MS then
        redis.call('PEXPIRE', KEYS[i], lease_ms + SLACK_MS)
    end
end
return #KEYS

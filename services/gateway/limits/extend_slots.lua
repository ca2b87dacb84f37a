-- Extends the leases of running requests.
--
-- KEYS: for each slot, the counter of its concurrency limit
-- ARGV: current time in seconds (empty: the server's clock), seconds of the lease, then for each slot its request id
-- Returns the number of slots

local SLACK_MS = 60000

local now = tonumber(ARGV[1])
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local lease = tonumber(ARGV[2])
local lease_ms = math.ceil(lease * 1000)

for i = 1, #KEYS do
    -- Also add a missing one: it expired while Valkey or this gateway was down, and its request still runs.
    redis.call('ZADD', KEYS[i], string.format('%.17g', now + lease), ARGV[i + 2])
    if redis.call('PTTL', KEYS[i]) < lease_ms + SLACK_MS then
        redis.call('PEXPIRE', KEYS[i], lease_ms + SLACK_MS)
    end
end
return #KEYS

-- Raises the tokens that a running request has reserved: at all of its limits, or, if one of them has too few left, at none.
--
-- KEYS: the request's hold, then each tokens_per_minute limit that it holds a part of, in the order of its admission
-- ARGV: current time in seconds (empty: the server's clock), tokens in all, then the number of each limit
-- Returns 1 if the request may use so many tokens, else 0. A second call changes nothing, and neither does one without a hold: the request
-- has ended, or Valkey has lost everything, the counters included.

local MINUTE = 60
local SLACK_MS = 60000

local now = tonumber(ARGV[1])
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local tokens = tonumber(ARGV[2])

local held = redis.call('GET', KEYS[1])
if not held then
    return 1
end
local reserved = {}
for number in string.gmatch(held, '%S+') do
    reserved[#reserved + 1] = number
end
local more = tokens - tonumber(reserved[1])
if more <= 0 then
    return 1
end

for i = 2, #KEYS do
    local each = MINUTE / tonumber(ARGV[i + 1])
    local back_at = math.min(tonumber(redis.call('GET', KEYS[i]) or now), now + MINUTE)
    local ahead = math.max(back_at - now, 0) + more * each
    -- The same tolerance for rounding as in admit_request.lua.
    if ahead > MINUTE + math.min(0.001, each / 100) then
        return 0
    end
    reserved[i] = string.format('%.17g', now + math.min(ahead, MINUTE))
end

reserved[1] = tokens
for i = 2, #KEYS do
    redis.call('SET', KEYS[i], reserved[i], 'PX', math.ceil((tonumber(reserved[i]) - now) * 1000) + SLACK_MS)
end
redis.call('SET', KEYS[1], table.concat(reserved, ' '), 'PX', math.max(1, redis.call('PTTL', KEYS[1])))
return 1

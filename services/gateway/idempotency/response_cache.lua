-- Stores an answer, and deletes the answers that expire first if all of them exceed the limit.
--
-- KEYS: the answer; a sorted set of answers by expiry in milliseconds; a hash of sizes; the sum of the sizes
-- ARGV: the value, its lifetime in milliseconds, the limit in bytes for all answers
-- Returns the bytes of all answers

-- Approximate size of the key and its entries.
local OVERHEAD = 400
local answer, order, sizes, sum = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local most = tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local function drop(name)
    local size = tonumber(redis.call('HGET', sizes, name) or 0)
    redis.call('DEL', name)
    redis.call('ZREM', order, name)
    redis.call('HDEL', sizes, name)
    return redis.call('DECRBY', sum, size)
end

drop(answer)
-- Remove expired answers, a few at a time.
for _, name in ipairs(redis.call('ZRANGEBYSCORE', order, '-inf', now, 'LIMIT', 0, 100)) do
    drop(name)
end

local size = #ARGV[1] + OVERHEAD
redis.call('SET', answer, ARGV[1], 'PX', ARGV[2])
redis.call('ZADD', order, now + tonumber(ARGV[2]), answer)
redis.call('HSET', sizes, answer, size)
local all = redis.call('INCRBY', sum, size)
while all > most do
    local first = redis.call('ZRANGE', order, 0, 0)[1]
    if not first then
        break
    end
    all = drop(first)
end
return all

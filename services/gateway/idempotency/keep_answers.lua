-- Stores answers, and deletes those that expire first while all, or those of one group, exceed their limit. A group's limit of 0 deletes it.
--
-- KEYS: a sorted set of all answers by expiry in milliseconds; a hash of their sizes; the sum of the sizes; the names of the new answers
-- ARGV: their lifetime in milliseconds; the limit in bytes for all answers; the group, with which its names begin, or '';
--       its limit in bytes; the values
-- Returns the bytes of all answers

-- Approximate size of a key and its entries.
local OVERHEAD = 400
local order, sizes, sum = KEYS[1], KEYS[2], KEYS[3]
local lifetime, most, group, most_of_group = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local function drop(name)
    local size = tonumber(redis.call('HGET', sizes, name) or 0)
    redis.call('UNLINK', name)
    redis.call('ZREM', order, name)
    redis.call('HDEL', sizes, name)
    redis.call('DECRBY', sum, size)
    local of = string.match(name, '^{[^}]*}:[^:]+:')
    -- The lists of a group may have expired.
    if of and redis.call('ZREM', of .. 'order', name) == 1 then
        redis.call('DECRBY', of .. 'bytes', size)
    end
end

local function shrink(names, bytes, limit)
    while tonumber(redis.call('GET', bytes) or 0) > limit do
        local first = redis.call('ZRANGE', names, 0, 0)[1]
        if not first then
            break
        end
        drop(first)
    end
end

-- The lists live as long as their last answer.
local function prolong(key)
    if redis.call('PTTL', key) < lifetime then
        redis.call('PEXPIRE', key, lifetime)
    end
end

-- Remove expired answers, a few at a time.
for _, name in ipairs(redis.call('ZRANGEBYSCORE', order, '-inf', now, 'LIMIT', 0, 100)) do
    drop(name)
end

for number = 4, #KEYS do
    local answer, value = KEYS[number], ARGV[number + 1]
    local size = #value + OVERHEAD
    drop(answer)
    redis.call('SET', answer, value, 'PX', lifetime)
    redis.call('ZADD', order, now + lifetime, answer)
    redis.call('HSET', sizes, answer, size)
    redis.call('INCRBY', sum, size)
    if group ~= '' then
        redis.call('ZADD', group .. 'order', now + lifetime, answer)
        redis.call('INCRBY', group .. 'bytes', size)
    end
end
if group ~= '' then
    shrink(group .. 'order', group .. 'bytes', most_of_group)
    prolong(group .. 'order')
    prolong(group .. 'bytes')
end
shrink(order, sum, most)
for number = 1, 3 do
    prolong(KEYS[number])
end
return tonumber(redis.call('GET', sum) or 0)

-- Raises the tokens that a running request has reserved: at all of its limits, or, if one of them has too few left, at none.
--
-- KEYS: the request's hold, then each limit of tokens that it holds a part of, in the order of its admission
-- ARGV: time, tokens in all, then the limits
-- Returns 1 if the request may use so many tokens, else 0. A second call changes nothing, and neither does one without a hold: the request
-- has ended, or Valkey has lost everything, the counters included.

local tokens = tonumber(ARGV[2])
local held = redis.call('GET', KEYS[1])
if not held then
    return 1
end
local numbers, limits = numbers_of(held), read_limits()
if tokens <= numbers[1] then
    return 1
end

for _, limit in ipairs(limits) do
    limit.cost = tokens - numbers[1]
    limit.counter.read(limit)
    if limit.retry > 0 then
        return 0
    end
end

local reserved = {tokens}
for i, limit in ipairs(limits) do
    limit.counter.count(limit, numbers[i + 1])
    reserved[i + 1] = limit.position
end
redis.call('SET', KEYS[1], table.concat(reserved, ' '), 'PX', math.max(1, redis.call('PTTL', KEYS[1])))
return 1

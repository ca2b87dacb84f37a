-- Returns a request's concurrency slot and what else it has not used. A second call finds nothing to return.
--
-- KEYS: the request's hold, then one for each limit that it holds a part of
-- ARGV: time, tokens used, request id, then the limits
-- Returns 1 if there was something to return, else 0

local used, id = tonumber(ARGV[2]), ARGV[3]
local held = redis.call('GETDEL', KEYS[1])
local returned, numbers, position = held and 1 or 0, numbers_of(held or ''), 1

for _, limit in ipairs(read_limits()) do
    if limit.is_slots then
        returned = math.max(returned, redis.call('ZREM', limit.key, id))
    elseif held then
        position = position + 1
        limit.counter.give_back(limit, numbers[position], numbers[1] - used)
    end
end
return returned

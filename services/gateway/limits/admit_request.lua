-- Counts one request against several limits: against all of them, or, if one of them is exhausted, against none.
--
-- KEYS: the request's hold (written if it reserves something), then one for each limit
-- ARGV: time, 1 to count or 0 only to check, request id, seconds of the lease, then the limits
-- Returns {1 if admitted else 0, then for each limit: left, milliseconds until the request fits, milliseconds until it is fully available}

local counting, id, lease = ARGV[2] == '1', ARGV[3], tonumber(ARGV[4])
-- Lease of a slot until its first extension: after this time, the slots of a killed gateway are free.
local slot_lease = math.min(lease, 30)

local admitted, limits = 1, read_limits()
for _, limit in ipairs(limits) do
    limit.counter.read(limit)
    if limit.retry > 0 then
        admitted = 0
    end
end

if admitted == 1 and counting then
    local held = {0}
    for _, limit in ipairs(limits) do
        limit.counter.count(limit, nil, id, slot_lease)
        if limit.is_held and not limit.is_slots then
            held[1] = limit.cost
            held[#held + 1] = limit.position
        end
    end
    if #held > 1 then
        redis.call('SET', KEYS[1], table.concat(held, ' '), 'PX', math.ceil(lease * 1000))
    end
end

local reply = {admitted}
for _, limit in ipairs(limits) do
    reply[#reply + 1] = limit.left
    reply[#reply + 1] = limit.retry > 0 and math.max(1, math.ceil(limit.retry * 1000)) or 0
    reply[#reply + 1] = milliseconds(limit.resets)
end
return reply

-- Replace a program's token by its successor, which is made from the token and the nonce. A caller that asks again within the grace period,
-- because the answer was lost or two asked at once, gets the same successor, unless that one was used already. Any other token of the
-- family was used before, so two callers have it: the session ends.
-- ARGV: now, idle ms, family, token, its successor, nonce, seconds of grace
-- Returns {'open', id, fields and values}, with the nonce to make the successor from; {'kind'} for a browser's token; {'reused', id, fields
-- and values}; nil.
local now = tonumber(ARGV[1])
local id, record = read_family(ARGV[3], now)
if not record then
    return nil
end
if record.kind ~= 'program' then
    return {'kind'}
end
if record.token == ARGV[4] then
    record.previous, record.token, record.nonce = ARGV[4], ARGV[5], ARGV[6]
    record.spent_at, record.last_used_at = ARGV[1], ARGV[1]
    redis.call('HSET', record_key(id), unpack(flat_of(record)))
    prolong(id, record, now, tonumber(ARGV[2]))
    return {'open', id, flat_of(record)}
end
if record.previous == ARGV[4] and now - tonumber(record.spent_at) <= tonumber(ARGV[7]) then
    return {'open', id, flat_of(record)}
end
drop(id, record)
return {'reused', id, flat_of(record)}

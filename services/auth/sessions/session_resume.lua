-- Extend a browser's session. Its use is recorded at most every `note` seconds.
-- ARGV: now, idle ms, family, token, note
-- Returns {'open', id, fields and values}; {'kind'} for a program's token; nil.
local now = tonumber(ARGV[1])
local id, record = read_family(ARGV[3], now)
if not record then
    return nil
end
if record.kind ~= 'browser' then
    return {'kind'}
end
-- This token was never issued: its sender guessed half of it, and learns nothing here.
if record.token ~= ARGV[4] then
    return nil
end
if now - tonumber(record.last_used_at) >= tonumber(ARGV[5]) then
    record.last_used_at = ARGV[1]
    redis.call('HSET', record_key(id), 'last_used_at', ARGV[1])
    prolong(id, record, now, tonumber(ARGV[2]))
end
return {'open', id, flat_of(record)}

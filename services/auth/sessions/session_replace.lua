-- Continue a session under another id and token, with some fields changed; the former id and token become invalid.
-- ARGV: now, idle ms, most per user, former id, id, then changed fields and values, empty for none
-- Returns fields and values, or nil: only one of several concurrent callers succeeds.
local now = tonumber(ARGV[1])
local record = read(ARGV[4], now)
if not record then
    return nil
end
drop(ARGV[4], record)
for n = 6, #ARGV, 2 do
    record[ARGV[n]] = ARGV[n + 1] ~= '' and ARGV[n + 1] or nil
end
record.previous, record.spent_at, record.nonce = nil, nil, nil
write(ARGV[5], record, now, tonumber(ARGV[2]), tonumber(ARGV[3]))
return flat_of(record)

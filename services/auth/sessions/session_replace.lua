-- A session goes on under another id and another token, with some of it changed; the former id and token are good for nothing.
-- ARGV: now, idle ms, most of a user's, former id, id, then the fields that change and their values, empty for none
-- Answers fields and values, or nil: of several that want to replace one, one does.
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

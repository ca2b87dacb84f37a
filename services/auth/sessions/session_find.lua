-- ARGV: now, id (empty: by the family), family
-- Returns {id, fields and values}, or nil.
local now, id, record = tonumber(ARGV[1]), ARGV[2], nil
if id ~= '' then
    record = read(id, now)
else
    id, record = read_family(ARGV[3], now)
end
return record and {id, flat_of(record)} or nil

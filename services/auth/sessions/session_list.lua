-- A user's complete sessions, newest first.
-- ARGV: now, user
-- Returns {id, fields and values} of each.
local now, found, index = tonumber(ARGV[1]), {}, index_key(ARGV[2], 'done')
for _, id in ipairs(redis.call('ZREVRANGE', index, 0, -1)) do
    local record = read(id, now)
    if record then
        found[#found + 1] = {id, flat_of(record)}
    else
        redis.call('ZREM', index, id)
    end
end
return found

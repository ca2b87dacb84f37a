-- ARGV: now, which: 'family', 'id', 'user', 'links'; then the family; or the user and the id; or the user and the id to keep (or empty); or
-- the user. All sessions of a user end together with the login links.
-- Returns id and user, in turn, of the sessions that ended.
local now, ended = tonumber(ARGV[1]), {}

local function finish(id, record)
    drop(id, record)
    ended[#ended + 1] = id
    ended[#ended + 1] = record.user_id
end

if ARGV[2] == 'user' or ARGV[2] == 'links' then
    for _, hash in ipairs(redis.call('ZRANGE', links_key(ARGV[3]), 0, -1)) do
        take_link(ARGV[3], hash)
    end
end
if ARGV[2] == 'family' then
    local id, record = read_family(ARGV[3], now)
    if record then
        finish(id, record)
    end
elseif ARGV[2] == 'id' then
    local record = read(ARGV[4], now)
    if record and record.user_id == ARGV[3] then
        finish(ARGV[4], record)
    end
elseif ARGV[2] == 'user' then
    for _, step in ipairs({'done', 'halfway'}) do
        for _, id in ipairs(redis.call('ZRANGE', index_key(ARGV[3], step), 0, -1)) do
            local record = id ~= ARGV[4] and read(id, now)
            if record then
                finish(id, record)
            end
        end
    end
end
return ended

-- Returns a request's concurrency slot and its unused tokens. A second call finds nothing to return.
--
-- KEYS: the request's hold, then one for each limit that it holds a part of
-- ARGV: current time in seconds (empty: the server's clock), tokens used, request id, then for each limit its kind and its number
-- Returns 1 if there was something to return, else 0

local MINUTE = 60
local SLACK_MS = 60000

local now = tonumber(ARGV[1])
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local used, id = tonumber(ARGV[2]), ARGV[3]

local returned, reserved, position = 0, {}, 1
local held = redis.call('GETDEL', KEYS[1])
if held then
    returned = 1
    for number in string.gmatch(held, '%S+') do
        reserved[#reserved + 1] = tonumber(number)
    end
end

for i = 2, #KEYS do
    local name, most = ARGV[2 * i], tonumber(ARGV[2 * i + 1])
    if name == 'concurrency' then
        returned = math.max(returned, redis.call('ZREM', KEYS[i], id))
    elseif held then
        position = position + 1
        local back_at = tonumber(redis.call('GET', KEYS[i]) or now)
        -- Don't return again what the passing time has already restored.
        local unused = math.min((reserved[1] - used) * (MINUTE / most), math.max(reserved[position] - now, 0))
        local ahead = math.max(back_at - now, 0) - unused
        if ahead > 0 then
            redis.call('SET', KEYS[i], string.format('%.17g', now + ahead), 'PX', math.ceil(ahead * 1000) + SLACK_MS)
        else
            redis.call('DEL', KEYS[i])
        end
    end
end
return returned

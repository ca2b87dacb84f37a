-- Counts one request against several hourly limits at once: against all of them, or, where one has no room, against none.
--
-- A limit is a hash of minute -> requests. A window is the running minute and the 60 before it: that is more than an hour,
-- so that no hour, wherever it begins, ever holds more than the limit.
--
-- KEYS: one hash for each limit
-- ARGV: requests to count (0 only looks), seconds now (empty: the server's clock), then the limit of each key
-- Returns {1 or 0 = counted or not, then for each key: used, milliseconds until it fits, milliseconds until the oldest minute leaves}

local WINDOW = 60
local cost = tonumber(ARGV[1])
local now
if ARGV[2] == '' then
    local time = redis.call('TIME')
    now = tonumber(time[1]) + tonumber(time[2]) / 1000000
else
    now = tonumber(ARGV[2])
end
local minute = math.floor(now / 60)

local function leaves_in(counted)
    return math.max(1, math.ceil(((counted + WINDOW + 1) * 60 - now) * 1000))
end

local reply, oldest, over = {1}, {}, {}
for i, key in ipairs(KEYS) do
    local limit = tonumber(ARGV[2 + i])
    local fields = redis.call('HGETALL', key)
    local minutes, counts, used = {}, {}, 0
    over[i] = {}
    for n = 1, #fields, 2 do
        local counted = tonumber(fields[n])
        if counted < minute - WINDOW then
            over[i][#over[i] + 1] = fields[n]
        else
            -- A minute of the future is one that was counted before the clock stepped back; it counts too.
            minutes[#minutes + 1] = counted
            counts[counted] = tonumber(fields[n + 1])
            used = used + counts[counted]
        end
    end
    table.sort(minutes)
    local retry = 0
    if used + cost > limit then
        reply[1] = 0
        local left = used
        retry = leaves_in(minute)
        for _, counted in ipairs(minutes) do
            left = left - counts[counted]
            if left + cost <= limit then
                retry = leaves_in(counted)
                break
            end
        end
    end
    local resets = 0
    oldest[i] = minutes[1] or minute
    if minutes[1] then
        resets = leaves_in(minutes[1])
    end
    reply[#reply + 1] = used
    reply[#reply + 1] = retry
    reply[#reply + 1] = resets
end

if reply[1] == 1 and cost > 0 then
    for i, key in ipairs(KEYS) do
        if over[i][1] then
            redis.call('HDEL', key, unpack(over[i]))
        end
        redis.call('HINCRBY', key, minute, cost)
        -- Two minutes more than the window, so that an idle caller leaves nothing behind.
        redis.call('EXPIRE', key, (WINDOW + 3) * 60)
        local at = 3 * (i - 1) + 2
        reply[at] = reply[at] + cost
        reply[at + 2] = leaves_in(math.min(oldest[i], minute))
    end
end
return reply

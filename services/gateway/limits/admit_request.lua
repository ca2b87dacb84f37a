-- Counts one request against several limits: against all of them, or, if one of them is exhausted, against none.
-- While Valkey is down, LocalCounters in limit_scripts.py implements the commands.
--
-- requests_per_hour: a hash of requests by minute. A window has the current minute and the 60 before it: more than an hour, so that no
--     hour, wherever it starts, ever exceeds the limit.
-- requests_per_minute, tokens_per_minute: GCRA. The key holds the time when the limit is fully available again, at most a minute ahead.
-- concurrency: a sorted set of requests by the end of their lease, which the gateway extends (extend_slots.lua).
--
-- KEYS: the request's hold (written if it reserves tokens), then one for each limit
-- ARGV: current time in seconds (empty: the server's clock), 1 to count or 0 only to check, tokens, request id, seconds of the lease,
--     then for each limit its kind and its number
-- Returns {1 if admitted else 0, then for each limit: left, milliseconds until the request fits, milliseconds until it is fully available}

local MINUTE, WINDOW = 60, 60
-- Keys outlive their content by a minute, in case the clock steps back.
local SLACK_MS = 60000
-- Tolerance for rounding, at most a hundredth of one unit, so that rounding never refuses the last unit.
local function tolerance(each)
    return math.min(0.001, each / 100)
end

local now = tonumber(ARGV[1])
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local counting, tokens, id, lease = ARGV[2] == '1', tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local minute = math.floor(now / 60)
local lease_ms = math.ceil(lease * 1000)
-- Lease of a slot until its first extension: after this time, the slots of a killed gateway are free.
local slot_lease = math.min(lease, 30)
local slot_lease_ms = math.ceil(slot_lease * 1000)

local function exact(number)
    return string.format('%.17g', number)
end

-- Round up, after subtracting a microsecond of rounding error.
local function milliseconds(seconds)
    return math.max(0, math.ceil(seconds * 1000 - 0.001))
end

-- Each kind of limit: `read` reads the key and returns left, retry and resets; `count` counts the request and updates them.
local kinds = {}

local function leaves_in(counted)
    return (counted + WINDOW + 1) * 60 - now
end

kinds.requests_per_hour = {
    read = function(key, most)
        local fields = redis.call('HGETALL', key)
        local minutes, counts, expired, used = {}, {}, {}, 0
        for n = 1, #fields, 2 do
            local counted = tonumber(fields[n])
            if counted < minute - WINDOW then
                expired[#expired + 1] = fields[n]
            else
                -- Include future minutes, counted before the clock stepped back.
                minutes[#minutes + 1] = counted
                counts[counted] = tonumber(fields[n + 1])
                used = used + counts[counted]
            end
        end
        table.sort(minutes)
        local retry = 0
        if used + 1 > most then
            local left = used
            retry = leaves_in(minute)
            for _, counted in ipairs(minutes) do
                left = left - counts[counted]
                if left + 1 <= most then
                    retry = leaves_in(counted)
                    break
                end
            end
        end
        local resets = 0
        if minutes[1] then
            resets = leaves_in(minutes[1])
        end
        return {left = most - used, retry = retry, resets = resets, expired = expired, oldest = minutes[1] or minute}
    end,
    count = function(key, most, found)
        if found.expired[1] then
            redis.call('HDEL', key, unpack(found.expired))
        end
        redis.call('HINCRBY', key, minute, 1)
        redis.call('PEXPIRE', key, (WINDOW + 1) * 60000 + SLACK_MS)
        found.left = found.left - 1
        found.resets = leaves_in(math.min(found.oldest, minute))
    end
}

local function left_of(each, ahead)
    return math.floor((MINUTE - ahead + tolerance(each)) / each)
end

local function gcra(cost)
    return {
        read = function(key, most)
            local each = MINUTE / most
            local back_at = tonumber(redis.call('GET', key) or now)
            if back_at > now + MINUTE then
                -- After a clock step, or with far more tokens than reserved, wait at most a minute.
                back_at = now + MINUTE
                redis.call('SET', key, exact(back_at), 'PX', MINUTE * 1000 + SLACK_MS)
            end
            local ahead = math.max(back_at - now, 0)
            local retry = 0
            if ahead + cost * each > MINUTE + tolerance(each) then
                retry = ahead + cost * each - MINUTE
            end
            return {left = left_of(each, ahead), retry = retry, resets = ahead, ahead = ahead}
        end,
        count = function(key, most, found)
            local each = MINUTE / most
            found.back_at = math.min(now + (found.ahead + cost * each), now + MINUTE)
            local ahead = found.back_at - now
            if ahead > 0 then
                redis.call('SET', key, exact(found.back_at), 'PX', milliseconds(ahead) + SLACK_MS)
            end
            found.left = left_of(each, ahead)
            found.resets = ahead
        end
    }
end

kinds.requests_per_minute = gcra(1)
kinds.tokens_per_minute = gcra(tokens)

kinds.concurrency = {
    read = function(key, most)
        local used = redis.call('ZCOUNT', key, '(' .. exact(now), '+inf')
        local resets, retry = 0, 0
        if used > 0 then
            resets = tonumber(redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')[2]) - now
        end
        if used + 1 > most then
            -- It is unknown when a slot becomes free, so retry in a second.
            retry = 1
        end
        return {left = most - used, retry = retry, resets = resets}
    end,
    count = function(key, most, found)
        redis.call('ZREMRANGEBYSCORE', key, '-inf', exact(now))
        redis.call('ZADD', key, exact(now + slot_lease), id)
        if redis.call('PTTL', key) < slot_lease_ms + SLACK_MS then
            redis.call('PEXPIRE', key, slot_lease_ms + SLACK_MS)
        end
        found.left = found.left - 1
        found.resets = math.max(found.resets, now + slot_lease - now)
    end
}

local admitted, found = 1, {}
for i = 2, #KEYS do
    local kind, most = kinds[ARGV[2 * i + 2]], tonumber(ARGV[2 * i + 3])
    found[i] = kind.read(KEYS[i], most)
    if found[i].retry > 0 then
        admitted = 0
    end
end

if admitted == 1 and counting then
    local held = {tokens}
    for i = 2, #KEYS do
        local name = ARGV[2 * i + 2]
        kinds[name].count(KEYS[i], tonumber(ARGV[2 * i + 3]), found[i])
        if name == 'tokens_per_minute' then
            held[#held + 1] = exact(found[i].back_at)
        end
    end
    if #held > 1 then
        redis.call('SET', KEYS[1], table.concat(held, ' '), 'PX', lease_ms)
    end
end

local reply = {admitted}
for i = 2, #KEYS do
    reply[#reply + 1] = found[i].left
    reply[#reply + 1] = found[i].retry > 0 and math.max(1, math.ceil(found[i].retry * 1000)) or 0
    reply[#reply + 1] = milliseconds(found[i].resets)
end
return reply

-- Counts limits. Every script begins with this file; while Valkey is down, LocalCounters in limit_scripts.py implements the commands.
--
-- window: a hash of what was counted, by bucket. A window has the current bucket, which is a 60th of it, and the 60 before: more than its
--     seconds, so that no such time, wherever it starts, ever exceeds the limit.
-- rate: GCRA. The key holds the time when the limit is fully available again, at most its seconds ahead.
-- slots: a sorted set of requests by the end of their lease, which the gateway extends (extend_slots.lua).
--
-- ARGV[1]: current time in seconds (empty: the server's clock)

local BUCKETS = 60
-- Keys outlive their content by a minute, in case the clock steps back.
local SLACK_MS = 60000

local now = tonumber(ARGV[1])
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function exact(number)
    return string.format('%.17g', number)
end

-- Round up, after subtracting a microsecond of rounding error.
local function milliseconds(seconds)
    return math.max(0, math.ceil(seconds * 1000 - 0.001))
end

-- Each counter: `read` reads the key and sets left, retry and resets of the limit; `count` counts its cost and updates them; `give_back`
-- returns what a request has not used.
local counters = {}

local function leaves_in(limit, bucket)
    return (bucket + BUCKETS + 1) * (limit.seconds / BUCKETS) - now
end

local function add(limit, bucket, cost)
    redis.call('HINCRBY', limit.key, bucket, cost)
    redis.call('PEXPIRE', limit.key, (BUCKETS + 1) * limit.seconds / BUCKETS * 1000 + SLACK_MS)
end

counters.window = {
    read = function(limit)
        local fields = redis.call('HGETALL', limit.key)
        local buckets, counts, used = {}, {}, 0
        limit.bucket, limit.expired = math.floor(now / (limit.seconds / BUCKETS)), {}
        for n = 1, #fields, 2 do
            local bucket = tonumber(fields[n])
            if bucket < limit.bucket - BUCKETS then
                limit.expired[#limit.expired + 1] = fields[n]
            else
                -- Include future buckets, counted before the clock stepped back.
                buckets[#buckets + 1] = bucket
                counts[bucket] = tonumber(fields[n + 1])
                used = used + counts[bucket]
            end
        end
        table.sort(buckets)
        limit.left, limit.retry = limit.most - used, 0
        if limit.cost > math.max(limit.left, 0) then
            local left = limit.left
            limit.retry = leaves_in(limit, limit.bucket)
            for _, bucket in ipairs(buckets) do
                left = left + counts[bucket]
                if limit.cost <= left then
                    limit.retry = leaves_in(limit, bucket)
                    break
                end
            end
        end
        limit.oldest = buckets[1]
        limit.resets = limit.oldest and leaves_in(limit, limit.oldest) or 0
    end,
    count = function(limit, reserved)
        if limit.expired[1] then
            redis.call('HDEL', limit.key, unpack(limit.expired))
        end
        -- More for a running request is counted where its first part was.
        local bucket = reserved and reserved >= limit.bucket - BUCKETS and reserved or limit.bucket
        limit.position = exact(bucket)
        if limit.cost > 0 then
            add(limit, bucket, limit.cost)
            limit.left = limit.left - limit.cost
            limit.resets = leaves_in(limit, math.min(limit.oldest or bucket, bucket))
        end
    end,
    give_back = function(limit, bucket, unused)
        if unused < 0 then
            add(limit, bucket, -unused)
        elseif unused > 0 then
            local counted = tonumber(redis.call('HGET', limit.key, bucket) or 0)
            if counted > unused then
                redis.call('HINCRBY', limit.key, bucket, -unused)
            elseif counted > 0 then
                redis.call('HDEL', limit.key, bucket)
            end
        end
    end
}

-- Tolerance for rounding, at most a hundredth of one unit, so that rounding never refuses the last unit.
local function tolerance(each)
    return math.min(0.001, each / 100)
end

local function left_of(limit, ahead)
    return math.floor((limit.seconds - ahead + tolerance(limit.each)) / limit.each)
end

counters.rate = {
    read = function(limit)
        limit.each = limit.seconds / limit.most
        local back_at = tonumber(redis.call('GET', limit.key) or now)
        if back_at > now + limit.seconds then
            -- After a clock step, or with far more than reserved, wait at most for the whole limit.
            back_at = now + limit.seconds
            redis.call('SET', limit.key, exact(back_at), 'PX', limit.seconds * 1000 + SLACK_MS)
        end
        limit.resets, limit.retry = math.max(back_at - now, 0), 0
        if limit.resets + limit.cost * limit.each > limit.seconds + tolerance(limit.each) then
            limit.retry = limit.resets + limit.cost * limit.each - limit.seconds
        end
        limit.left = left_of(limit, limit.resets)
    end,
    count = function(limit)
        local back_at = math.min(now + (limit.resets + limit.cost * limit.each), now + limit.seconds)
        limit.position, limit.resets = exact(back_at), back_at - now
        if limit.resets > 0 then
            redis.call('SET', limit.key, limit.position, 'PX', milliseconds(limit.resets) + SLACK_MS)
        end
        limit.left = left_of(limit, limit.resets)
    end,
    give_back = function(limit, reserved, unused)
        local back_at = tonumber(redis.call('GET', limit.key) or now)
        -- Don't return again what the passing time has already restored.
        local restored = math.min(unused * (limit.seconds / limit.most), math.max(reserved - now, 0))
        local ahead = math.max(back_at - now, 0) - restored
        if ahead > 0 then
            redis.call('SET', limit.key, exact(now + ahead), 'PX', math.ceil(ahead * 1000) + SLACK_MS)
        else
            redis.call('DEL', limit.key)
        end
    end
}

local function hold_slot(key, id, lease)
    redis.call('ZADD', key, exact(now + lease), id)
    local lease_ms = math.ceil(lease * 1000) + SLACK_MS
    if redis.call('PTTL', key) < lease_ms then
        redis.call('PEXPIRE', key, lease_ms)
    end
end

counters.slots = {
    read = function(limit)
        local used = redis.call('ZCOUNT', limit.key, '(' .. exact(now), '+inf')
        limit.left, limit.retry, limit.resets = limit.most - used, 0, 0
        if used > 0 then
            limit.resets = tonumber(redis.call('ZRANGE', limit.key, -1, -1, 'WITHSCORES')[2]) - now
        end
        if used + 1 > limit.most then
            -- It is unknown when a slot becomes free, so retry in a second.
            limit.retry = 1
        end
    end,
    count = function(limit, _, id, lease)
        redis.call('ZREMRANGEBYSCORE', limit.key, '-inf', exact(now))
        hold_slot(limit.key, id, lease)
        limit.left = limit.left - 1
        limit.resets = math.max(limit.resets, now + lease - now)
    end
}

-- Return the limits: KEYS has one for each behind the request's hold, and ARGV ends with five for each: its counter, its seconds, its
-- number, what the request costs, and whether the request holds a part of it (1 or 0).
local function read_limits()
    local limits, at = {}, #ARGV - 5 * (#KEYS - 1)
    for i = 2, #KEYS do
        limits[i - 1] = {
            key = KEYS[i], counter = counters[ARGV[at + 1]], is_slots = ARGV[at + 1] == 'slots', seconds = tonumber(ARGV[at + 2]),
            most = tonumber(ARGV[at + 3]), cost = tonumber(ARGV[at + 4]), is_held = ARGV[at + 5] == '1'
        }
        at = at + 5
    end
    return limits
end

-- Return the numbers of a hold: what each limit without slots has reserved, then the position of it in each.
local function numbers_of(held)
    local numbers = {}
    for number in string.gmatch(held, '%S+') do
        numbers[#numbers + 1] = tonumber(number)
    end
    return numbers
end

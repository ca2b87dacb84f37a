-- A device login is a hash under the hash of its device code: facts (JSON), code (hash of its user code), poll_at, interval, denied.
-- The hash of its user code leads to it until a person decides. An approved login is a login link under the hash of the device code.
-- ARGV: now, which: 'begin', 'find', 'poll', 'decide'; then the hash of the device code ('begin', 'poll') or of the user code.
local now, which, hash = tonumber(ARGV[1]), ARGV[2], ARGV[3]

local function device_key(device)
    return KEYS[1] .. 'device:' .. device
end

local function code_key(code)
    return KEYS[1] .. 'device_code:' .. code
end

-- Further: life in ms, hash of the user code, facts, interval in s. Returns 0 if another login has the user code.
if which == 'begin' then
    if not redis.call('SET', code_key(ARGV[5]), hash, 'NX', 'PX', ARGV[4]) then
        return 0
    end
    redis.call('HSET', device_key(hash), 'facts', ARGV[6], 'code', ARGV[5], 'interval', ARGV[7], 'poll_at', now + ARGV[7])
    redis.call('PEXPIRE', device_key(hash), ARGV[4])
    return 1
end

-- Further: by how many s the interval grows if this poll is too early. Returns {'pending', 'slow_down' or 'denied', interval}, or nil.
if which == 'poll' then
    local poll_at, interval, denied = unpack(redis.call('HMGET', device_key(hash), 'poll_at', 'interval', 'denied'))
    if not poll_at then
        return nil
    elseif denied then
        return {'denied', interval}
    end
    local is_early = now < tonumber(poll_at)
    if is_early then
        interval = tostring(interval + ARGV[4])
    end
    redis.call('HSET', device_key(hash), 'interval', interval, 'poll_at', now + interval)
    return {is_early and 'slow_down' or 'pending', interval}
end

-- 'find' and 'decide' return the facts, or nil.
local device = redis.call('GET', code_key(hash))
local facts = device and redis.call('HGET', device_key(device), 'facts')
if not facts or which == 'find' then
    return facts or nil
end
-- Further: the user (empty to deny), the link, its life in ms, most links per user. Only one of several concurrent callers succeeds.
redis.call('DEL', code_key(hash))
if ARGV[4] == '' then
    redis.call('HSET', device_key(device), 'denied', '1')
else
    redis.call('DEL', device_key(device))
    add_link(ARGV[4], device, ARGV[5], now, tonumber(ARGV[6]), tonumber(ARGV[7]))
end
return facts

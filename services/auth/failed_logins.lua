-- Charge one guess to an account, to the address that it comes from and to the whole mesh; or, where one of them has no room, to none.
--
-- The account is a hash: `run` guesses since the last right one, `used` of them in the window that ends at `ends` (ms since 1970) and
--     is `length` ms long. A window that was used up makes the next one twice as long. `row` and `window` name what it belongs to by the
--     first guess in it, so that it can be given back there and nowhere else.
-- The other two are counters that go with their window.
--
-- KEYS: account, address (empty: not counted), mesh
-- ARGV: now in ms, guesses of an account, its first window in ms, its longest, most in a row, ms for which a row is remembered,
--     guesses of an address, guesses of the mesh, window of both in ms, a name for this guess
-- Answers {what has no room, ms to wait}; {'', 0, row, window, ends of the windows of address and mesh} when the guess may be made.
local now, most, window, longest = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local in_a_row, remembered = tonumber(ARGV[5]), tonumber(ARGV[6])
local shared_window = tonumber(ARGV[9])

local found = redis.call('HMGET', KEYS[1], 'run', 'used', 'ends', 'length', 'row', 'window')
local run, used = tonumber(found[1] or '0'), tonumber(found[2] or '0')
local ends, length = tonumber(found[3] or '0'), tonumber(found[4] or '0')
local row, part = found[5] or ARGV[10], found[6] or ARGV[10]
if run >= in_a_row then
    return {'row', 0}
end
if now >= ends then
    length = used >= most and math.min(length * 2, longest) or window
    used, ends, part = 0, now + length, ARGV[10]
end
if used >= most then
    return {'account', ends - now}
end

local function room(key, limit)
    if key == '' or tonumber(redis.call('GET', key) or '0') < limit then
        return nil
    end
    return math.max(1, redis.call('PTTL', key))
end

local wait = room(KEYS[2], tonumber(ARGV[7]))
if wait then
    return {'address', wait}
end
wait = room(KEYS[3], tonumber(ARGV[8]))
if wait then
    return {'mesh', wait}
end

redis.call('HSET', KEYS[1], 'run', run + 1, 'used', used + 1, 'ends', string.format('%d', ends), 'length', string.format('%d', length),
    'row', row, 'window', part)
redis.call('PEXPIRE', KEYS[1], remembered)
local until_when = {0, 0}
for n = 2, 3 do
    if KEYS[n] ~= '' then
        if redis.call('INCR', KEYS[n]) == 1 then
            redis.call('PEXPIRE', KEYS[n], shared_window)
        end
        until_when[n - 1] = redis.call('PEXPIRETIME', KEYS[n])
    end
end
return {'', 0, row, part, until_when[1], until_when[2]}

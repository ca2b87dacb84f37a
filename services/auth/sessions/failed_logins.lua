-- Charge one attempt to every counter, or to none if one of them is full.
--
-- A row is a hash: `run` attempts since the last success, `used` of them in the window that ends at `ends` (ms since 1970) and is `length`
-- ms long. A used-up window makes the next one twice as long. `row` and `window` hold the name of the first attempt in them, so that an
-- attempt is refunded only where it was charged. There are up to two rows: the account at one address (or in one browser), and the
-- account anywhere. `of` names the account's row that the first one belongs to: once that is forgiven, all addresses are. The counters of
-- the address and of the mesh end with their window.
--
-- KEYS: first row, account's row, address, mesh; empty where it is not counted
-- ARGV: now in ms, first window of a row in ms, its longest, most in a row, window of the counters in ms, a name for this attempt, attempts
-- of the first row, ms for which it is remembered, attempts of the account, ms for which it is remembered, attempts of an address, attempts
-- of the mesh
-- Returns {what is full, ms to wait}, or {'', 0, row, window, row, window, ends of the windows of address and mesh} if the attempt is
-- allowed.
local now, window, longest, in_a_row = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local shared_window, name = tonumber(ARGV[5]), ARGV[6]

local function read(key, most, remembered, of)
    local found = redis.call('HMGET', key, 'run', 'used', 'ends', 'length', 'row', 'window', 'of')
    if (found[7] or '') ~= of then
        found = {}
    end
    local state = {key = key, most = most, remembered = remembered, of = of}
    state.run, state.used = tonumber(found[1] or '0'), tonumber(found[2] or '0')
    state.ends, state.length = tonumber(found[3] or '0'), tonumber(found[4] or '0')
    state.row, state.window = found[5] or name, found[6] or name
    if now >= state.ends then
        state.length = state.used >= most and math.min(state.length * 2, longest) or window
        state.used, state.ends, state.window = 0, now + state.length, name
    end
    return state
end

local rows, account = {}, nil
if KEYS[2] ~= '' then
    account = read(KEYS[2], tonumber(ARGV[9]), tonumber(ARGV[10]), '')
end
if KEYS[1] ~= '' then
    rows[1] = read(KEYS[1], tonumber(ARGV[7]), tonumber(ARGV[8]), account and account.row or '')
end
if account then
    rows[#rows + 1] = account
end
for _, state in ipairs(rows) do
    if state.run >= in_a_row then
        return {'row', 0}
    end
    if state.used >= state.most then
        return {state.key == KEYS[1] and 'first' or 'account', state.ends - now}
    end
end

local function room(key, limit)
    if key == '' or tonumber(redis.call('GET', key) or '0') < limit then
        return nil
    end
    return math.max(1, redis.call('PTTL', key))
end

local wait = room(KEYS[3], tonumber(ARGV[11]))
if wait then
    return {'address', wait}
end
wait = room(KEYS[4], tonumber(ARGV[12]))
if wait then
    return {'mesh', wait}
end

local charged = {'', 0, '', '', '', '', 0, 0}
for _, state in ipairs(rows) do
    redis.call('HSET', state.key, 'run', state.run + 1, 'used', state.used + 1, 'ends', string.format('%d', state.ends),
        'length', string.format('%d', state.length), 'row', state.row, 'window', state.window, 'of', state.of)
    redis.call('PEXPIRE', state.key, state.remembered)
    local at = state.key == KEYS[1] and 3 or 5
    charged[at], charged[at + 1] = state.row, state.window
end
for n = 3, 4 do
    if KEYS[n] ~= '' then
        if redis.call('INCR', KEYS[n]) == 1 then
            redis.call('PEXPIRE', KEYS[n], shared_window)
        end
        charged[n + 4] = redis.call('PEXPIRETIME', KEYS[n])
    end
end
return charged

-- Refund an attempt whose password was not compared, wherever it was charged. Forgiven rows and windows that have ended since don't
-- need it.
-- KEYS: first row, account's row, address, mesh; empty where it was not counted
-- ARGV: row and window of the first and of the account's row, ends of the windows of address and mesh, as they were charged
for n = 1, 2 do
    local row, window = ARGV[2 * n - 1], ARGV[2 * n]
    local found = KEYS[n] ~= '' and redis.call('HMGET', KEYS[n], 'row', 'window', 'run', 'used') or {}
    local run, used = tonumber(found[3] or '0'), tonumber(found[4] or '0')
    if found[1] == row and run > 1 then
        redis.call('HSET', KEYS[n], 'run', run - 1)
        if found[2] == window and used > 0 then
            redis.call('HSET', KEYS[n], 'used', used - 1)
        end
    elseif found[1] == row then
        redis.call('DEL', KEYS[n])
    end
end
for n = 3, 4 do
    local ends = tonumber(ARGV[n + 2])
    if KEYS[n] ~= '' and redis.call('PEXPIRETIME', KEYS[n]) == ends and tonumber(redis.call('GET', KEYS[n])) > 0 then
        redis.call('DECR', KEYS[n])
    end
end
return 0

-- Nobody has looked whether this guess was right: what it was charged to gets it back, and it alone.
--
-- An account that was forgiven since has begun another row, and a window that is over began another one: these were charged nothing.
-- KEYS: account, address (empty: not counted), mesh
-- ARGV: row and window of the account, ends of the windows of address and mesh, as they were charged
local found = redis.call('HMGET', KEYS[1], 'row', 'window', 'run', 'used')
local run, used = tonumber(found[3] or '0'), tonumber(found[4] or '0')
if found[1] == ARGV[1] and run > 1 then
    redis.call('HSET', KEYS[1], 'run', run - 1)
    if found[2] == ARGV[2] and used > 0 then
        redis.call('HSET', KEYS[1], 'used', used - 1)
    end
elseif found[1] == ARGV[1] then
    redis.call('DEL', KEYS[1])
end
for n = 2, 3 do
    if KEYS[n] ~= '' and redis.call('PEXPIRETIME', KEYS[n]) == tonumber(ARGV[n + 1]) and tonumber(redis.call('GET', KEYS[n])) > 0 then
        redis.call('DECR', KEYS[n])
    end
end
return 0

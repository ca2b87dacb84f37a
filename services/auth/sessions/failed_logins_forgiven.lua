-- The attempt was right: reset its rows, and give address and mesh back what it was charged.
-- KEYS: first row, account's row, address, mesh; empty where it was not counted
for n = 1, 2 do
    if KEYS[n] ~= '' then
        redis.call('DEL', KEYS[n])
    end
end
for n = 3, 4 do
    if KEYS[n] ~= '' and tonumber(redis.call('GET', KEYS[n]) or '0') > 0 then
        redis.call('DECR', KEYS[n])
    end
end
return 0

-- The guess was right: its rows start anew, and address and mesh get back what it was charged, not more.
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

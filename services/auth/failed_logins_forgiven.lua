-- The guess was right: the account starts anew, and the other two get back what it was charged, not more.
-- KEYS: account, address (empty: not counted), mesh
redis.call('DEL', KEYS[1])
for n = 2, 3 do
    if KEYS[n] ~= '' and tonumber(redis.call('GET', KEYS[n]) or '0') > 0 then
        redis.call('DECR', KEYS[n])
    end
end
return 0

-- Reads answers.
--
-- KEYS: their names
-- ARGV: the limit in bytes for all of them
-- Returns the values, up to the first that exceeds the limit; false where there is none

local found, left = {}, tonumber(ARGV[1])
for number, name in ipairs(KEYS) do
    left = left - redis.call('STRLEN', name)
    if left < 0 then
        break
    end
    found[number] = redis.call('GET', name)
end
return found

-- Extends the leases of running requests.
--
-- KEYS: for each slot, the counter of its concurrency limit
-- ARGV: time, seconds of the lease, then for each slot its request id
-- Returns the number of slots

for i = 1, #KEYS do
    -- Also add a missing one: it expired while Valkey or this gateway was down, and its request still runs.
    hold_slot(KEYS[i], ARGV[i + 2], tonumber(ARGV[2]))
end
return #KEYS

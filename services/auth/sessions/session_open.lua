-- ARGV: now, idle ms, most per user, id, hash of the token of the link that opens it (empty for none), then fields and values
-- Returns 1, or 0 if the link was used or has ended: only one of several concurrent callers succeeds.
local record = fields_of(ARGV, 6)
if ARGV[5] ~= '' and not take_link(record.user_id, ARGV[5]) then
    return 0
end
write(ARGV[4], record, tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]))
return 1

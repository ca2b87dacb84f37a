-- ARGV: now, life in ms, most per user, user, hash of the link's token, the link
add_link(ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]))
return 1

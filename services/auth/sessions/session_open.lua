-- ARGV: now, idle ms, most per user, id, then fields and values
write(ARGV[4], fields_of(ARGV, 5), tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]))
return 1

-- Prepended to every script about sessions. A session is a hash under its id; the family of its tokens leads to the id. Two sorted sets
-- hold the ids of a user's sessions by opening time: complete ones, and those that lack a step. A login link is a value under the hash of
-- its token; a sorted set holds the hashes of a user's links, so that they end with all sessions. Keys are built from stored values; all
-- begin with KEYS[1], which gives them one hash tag in a cluster.
--
-- Fields: user_id, kind, opened_at, last_used_at, confirmed_at, step, has_factor, address, agent, family; optional: team_id, browser,
-- ends_at; token, previous, spent_at, nonce: hashes of the valid token and of the one before it. Times in s since 1970.

local function record_key(id)
    return KEYS[1] .. 'session:' .. id
end

local function family_key(family)
    return KEYS[1] .. 'session_family:' .. family
end

local function index_key(user, step)
    return KEYS[1] .. (step == 'done' and 'sessions_of:' or 'halfway_of:') .. user
end

local function link_key(hash)
    return KEYS[1] .. 'link:' .. hash
end

local function links_key(user)
    return KEYS[1] .. 'links_of:' .. user
end

-- Returns whether there was one.
local function take_link(user, hash)
    redis.call('ZREM', links_key(user), hash)
    return redis.call('DEL', link_key(hash)) == 1
end

-- Of more than `most`, the oldest end.
local function add_link(user, hash, link, now, life, most)
    local index = links_key(user)
    redis.call('ZREMRANGEBYSCORE', index, '-inf', now - life / 1000)
    redis.call('SET', link_key(hash), link, 'PX', life)
    redis.call('ZADD', index, now, hash)
    redis.call('PEXPIRE', index, life)
    for _, oldest in ipairs(redis.call('ZRANGE', index, 0, -1 - most)) do
        take_link(user, oldest)
    end
end

-- Fields and values in turn -> table; empty values are left out.
local function fields_of(flat, from)
    local record = {}
    for n = from, #flat, 2 do
        if flat[n + 1] ~= '' then
            record[flat[n]] = flat[n + 1]
        end
    end
    return record
end

local function flat_of(record)
    local flat = {}
    for field, value in pairs(record) do
        flat[#flat + 1] = field
        flat[#flat + 1] = value
    end
    return flat
end

local function drop(id, record)
    redis.call('DEL', record_key(id), family_key(record.family))
    redis.call('ZREM', index_key(record.user_id, record.step), id)
end

-- Returns nil if the session has ended.
local function read(id, now)
    local flat = redis.call('HGETALL', record_key(id))
    if #flat == 0 then
        return nil
    end
    local record = fields_of(flat, 1)
    if record.ends_at and now >= tonumber(record.ends_at) then
        drop(id, record)
        return nil
    end
    return record
end

-- Returns id, record by the family of a token.
local function read_family(family, now)
    local id = redis.call('GET', family_key(family))
    if not id then
        return nil, nil
    end
    return id, read(id, now)
end

-- Extend its life by an idle time, but not beyond its end.
local function prolong(id, record, now, idle_ms)
    local life = idle_ms
    if record.ends_at then
        life = math.min(life, math.ceil((tonumber(record.ends_at) - now) * 1000))
    end
    local index = index_key(record.user_id, record.step)
    redis.call('PEXPIRE', record_key(id), life)
    redis.call('PEXPIRE', family_key(record.family), life)
    if redis.call('PTTL', index) < life then
        redis.call('PEXPIRE', index, life)
    end
end

-- Of more than `most`, the oldest end; ids of ended sessions are removed.
local function write(id, record, now, idle_ms, most)
    local index = index_key(record.user_id, record.step)
    redis.call('HSET', record_key(id), unpack(flat_of(record)))
    redis.call('SET', family_key(record.family), id)
    for _, other in ipairs(redis.call('ZRANGE', index, 0, -1)) do
        if redis.call('EXISTS', record_key(other)) == 0 then
            redis.call('ZREM', index, other)
        end
    end
    redis.call('ZADD', index, record.opened_at, id)
    prolong(id, record, now, idle_ms)
    for _, oldest in ipairs(redis.call('ZRANGE', index, 0, -1 - most)) do
        local other = read(oldest, now)
        if other then
            drop(oldest, other)
        end
    end
end

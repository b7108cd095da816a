"""What happens in the server at once: the ledger's scripts, and those of one donor's values.

The ledger's keys, all on one node (`redis_keys.Keys.ledger`):

| key | type | holds |
| --- | --- | --- |
| donors | hash | donor → `bytes pinned revision location` |
| lru | sorted set | donors that are not pinned, by the time of their last use in µs |
| expiry | sorted set | donors that expire, by that time in µs |
| leases | hash | generation → `bytes until state donor location`; written (`w`) or going (`d`) |
| sums | hash | `total` of entries and leases, `pinned`, `revision` of the last event, `epoch` |
| events | stream | what changed, the latest ones |

`total` is what the budget is held against. Bytes are in it from before the first is written until
after the last is deleted: a put begins with a lease, and what is evicted stays as a lease until
whoever evicted it has deleted its values.
"""

from __future__ import annotations

# A donor that is written holds its lease for so long; its values expire with the lease until they
# are published. Nobody's clock but the servers' counts.
_COMMON = """
local donors, lru, expiry, leases, sums, events = unpack(KEYS)
local process, kept = ARGV[1], ARGV[2]

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

local function sum(name) return tonumber(redis.call('HGET', sums, name) or '0') end

local function whole(number) return string.format('%.0f', number) end

local function entry(donor)
  local found = redis.call('HGET', donors, donor)
  if not found then return nil end
  local bytes, pinned, revision, location = string.match(found, '^(%d+) (%d) (%d+) (.*)$')
  return {bytes = tonumber(bytes), pinned = pinned == '1', location = location,
          generation = string.match(location, '^(%S+)')}
end

local function tell(kind, donor)
  local revision = redis.call('HINCRBY', sums, 'revision', 1)
  redis.call('XADD', events, 'MAXLEN', '~', kept, '*',
             'revision', whole(revision), 'kind', kind, 'donor', donor, 'process', process)
  return revision
end

local function lease(generation, bytes, until_us, state, donor, location)
  local words = {whole(bytes), whole(until_us), state, donor, location}
  redis.call('HSET', leases, generation, table.concat(words, ' '))
end

-- Out of the ledger; its bytes count until its values are deleted.
local function retire(donor, found)
  redis.call('HDEL', donors, donor)
  redis.call('ZREM', lru, donor)
  redis.call('ZREM', expiry, donor)
  if found.pinned then redis.call('HINCRBY', sums, 'pinned', whole(-found.bytes)) end
  lease(found.generation, found.bytes, 0, 'd', donor, found.location)
end
"""

# ARGV: donor, bytes wanted, budget, lease in µs, location.
# → {'ok'} | {'new'} | {'full', bytes there would be} | {'room'}, each with: donors and locations
# whose values are to be deleted, donors evicted for it.
RESERVE = (
    _COMMON
    + """
local donor, need, budget = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local time = now()
if redis.call('HEXISTS', sums, 'epoch') == 0 then return {'new', '0', {}, {}} end

for _, late in ipairs(redis.call('ZRANGEBYSCORE', expiry, '-inf', whole(time), 'LIMIT', 0, 100)) do
  local found = entry(late)
  if found then
    retire(late, found)
    tell('gone', late)
  else
    redis.call('ZREM', expiry, late)
  end
end

local leased, going, doomed = 0, 0, {}
local all = redis.call('HGETALL', leases)
for i = 1, #all, 2 do
  local words = '^(%d+) (%d+) (%a) (%S+) (.*)$'
  local bytes, limit, state, whose, location = string.match(all[i + 1], words)
  leased = leased + tonumber(bytes)
  if state == 'd' or tonumber(limit) < time then
    going = going + tonumber(bytes)
    doomed[#doomed + 1] = whose
    doomed[#doomed + 1] = location
    -- Whoever wrote this is gone, or so late that it may not publish it any more.
    if state == 'w' then lease(all[i], tonumber(bytes), 0, 'd', whose, location) end
  end
end

local total = sum('total')
if total + need <= budget then
  redis.call('HINCRBY', sums, 'total', whole(need))
  lease(string.match(ARGV[7], '^(%S+)'), need, time + tonumber(ARGV[6]), 'w', donor, ARGV[7])
  return {'ok', '0', doomed, {}}
end

local own = entry(donor)
local evictable = total - sum('pinned') - leased
if own and own.pinned then evictable = evictable + own.bytes end  -- it is being replaced
local most = budget - total + going + evictable
if need > most then return {'full', whole(most), doomed, {}} end

local short, evicted = total + need - budget - going, {}
local function evict(victim, found)
  short = short - found.bytes
  doomed[#doomed + 1] = victim
  doomed[#doomed + 1] = found.location
  retire(victim, found)
end
if short > 0 and own then evict(donor, own) tell('gone', donor) end
while short > 0 do
  local victim = redis.call('ZRANGE', lru, 0, 0)[1]
  if not victim then break end
  local found = entry(victim)
  if found then
    evict(victim, found)
    tell('gone', victim)
    evicted[#evicted + 1] = victim
  else
    redis.call('ZREM', lru, victim)
  end
end
return {'room', '0', doomed, evicted}
"""
)

# ARGV: donor, pinned, time of expiry in µs or '', location.
# → {revision, or 0 where the lease is over; the location it replaces, or ''}.
COMMIT = (
    _COMMON
    + """
local donor, pinned, expires, location = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local generation = string.match(location, '^(%S+)')
local bytes, state = string.match(redis.call('HGET', leases, generation) or '', '^(%d+) %d+ (%a)')
if state ~= 'w' then return {0, ''} end
local old = entry(donor)
if old then retire(donor, old) end
redis.call('HDEL', leases, generation)
if pinned == '1' then
  redis.call('HINCRBY', sums, 'pinned', bytes)
else
  redis.call('ZADD', lru, whole(now()), donor)
end
if expires ~= '' then redis.call('ZADD', expiry, expires, donor) end
local revision = tell('put', donor)
redis.call('HSET', donors, donor,
           table.concat({bytes, pinned, whole(revision), location}, ' '))
return {revision, old and old.location or ''}
"""
)

# ARGV: donor, pinned, time of expiry in µs or '', generation. → revision, or 0 where it is gone.
UPDATE = (
    _COMMON
    + """
local donor, pinned, expires = ARGV[3], ARGV[4], ARGV[5]
local found = entry(donor)
if not found or found.generation ~= ARGV[6] then return 0 end
if found.pinned and pinned == '0' then
  redis.call('HINCRBY', sums, 'pinned', whole(-found.bytes))
  redis.call('ZADD', lru, whole(now()), donor)
elseif not found.pinned and pinned == '1' then
  redis.call('HINCRBY', sums, 'pinned', whole(found.bytes))
  redis.call('ZREM', lru, donor)
end
if expires ~= '' then
  redis.call('ZADD', expiry, expires, donor)
else
  redis.call('ZREM', expiry, donor)
end
local revision = tell('put', donor)
redis.call('HSET', donors, donor,
           whole(found.bytes) .. ' ' .. pinned .. ' ' .. whole(revision) .. ' ' .. found.location)
return revision
"""
)

# ARGV: donor, generation or '' for any. → the location whose values are to be deleted, or ''.
RETIRE = (
    _COMMON
    + """
local found = entry(ARGV[3])
if not found or (ARGV[4] ~= '' and found.generation ~= ARGV[4]) then return '' end
retire(ARGV[3], found)
tell(ARGV[5], ARGV[3])
return found.location
"""
)

# ARGV: generations whose values have been deleted. Each counts once, whoever says so first.
FREE = (
    _COMMON
    + """
for i = 3, #ARGV do
  local bytes = string.match(redis.call('HGET', leases, ARGV[i]) or '', '^(%d+)')
  if bytes then
    redis.call('HDEL', leases, ARGV[i])
    redis.call('HINCRBY', sums, 'total', '-' .. bytes)
  end
end
return 0
"""
)

# ARGV: donor.
USED = (
    _COMMON
    + """
redis.call('ZADD', lru, 'XX', whole(now()), ARGV[3])
return 0
"""
)

# KEYS: the record, then all chunks of a donor. ARGV: the record, time of expiry in ms or '',
# 'new' or 'again'. → 1, or 0 where a value is missing.
PUBLISH = """
local again = ARGV[3] == 'again'
for i = again and 1 or 2, again and 1 or #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then return 0 end
end
redis.call('SET', KEYS[1], ARGV[1])
for i = ARGV[2] == '' and 2 or 1, #KEYS do
  if ARGV[2] == '' then
    redis.call('PERSIST', KEYS[i])
  else
    redis.call('PEXPIREAT', KEYS[i], ARGV[2])
  end
end
return 1
"""

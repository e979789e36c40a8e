//! The scripts of permits (protocol 2): what grants them, and what a store that forgot is told.

use std::sync::LazyLock;

use super::schema::with_common;
use super::script::Script;

/// KEYS window, grants. ARGV limit, wanted soon and for long, share, window, brief and long life in µs, the run that is trusted or nothing, then
/// each report: id, number of groups of uses, each with its count and its last use. Another run may have forgotten
/// grants, and answers `other`. The arithmetic of
/// `domain::window` in microseconds (protocol 2): closed grants are replaced by their uses; open ones count wholly until
/// a window after the end of their life.
pub(super) static PERMITS: LazyLock<Script> = LazyLock::new(|| {
    with_common(
        r"
if ARGV[8] ~= '' and incarnation() ~= ARGV[8] then return {'other'} end
local limit, soon, long, share = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local window, brief_life, long_life = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local function text(number) return string.format('%.0f', number) end
local latest, wall, last, used, open = nil, nil, 0, 0, {}
local kept = redis.call('HGETALL', KEYS[2])
for at = 1, #kept, 2 do
  if kept[at] == 'latest' then latest = tonumber(kept[at + 1])
  elseif kept[at] == 'wall' then wall = tonumber(kept[at + 1])
  elseif kept[at] == 'last' then last = tonumber(kept[at + 1])
  elseif kept[at] == 'used' then used = tonumber(kept[at + 1])
  else
    local granted, count, life = string.match(kept[at + 1], '^(%d+) (%d+) (%-?%d+)$')
    open[kept[at]] = {tonumber(granted), tonumber(count), tonumber(life)}
  end
end
latest = logical(latest, wall)
-- What is added and what ends is gathered, and goes in few calls.
local added, ended = {}, {}
local function add()
  if #added > 0 then redis.call('ZADD', KEYS[1], unpack(added)) end
  added = {}
end
local at = 9
while at <= #ARGV do
  local id, groups = ARGV[at], tonumber(ARGV[at + 1])
  local grant, first = open[id], 1
  if grant then
    for group = 1, groups do
      local count = math.min(tonumber(ARGV[at + 2 * group]), grant[2] - first + 1)
      if count > 0 then
        added[#added + 1] = text(grant[1] + math.min(tonumber(ARGV[at + 2 * group + 1]), grant[3]))
        added[#added + 1] = id .. ':' .. text(first) .. ':' .. text(count)
        first, used = first + count, used + count
        if #added == 1000 then add() end
      end
    end
    ended[#ended + 1] = id
    open[id] = nil
  end
  at = at + 2 + 2 * groups
end
add()
local function count_of(member) return tonumber(string.match(member, ':(%d+)$')) end
local gone = redis.call('ZRANGE', KEYS[1], '-inf', text(latest - window), 'BYSCORE')
if #gone > 0 then
  for _, member in ipairs(gone) do used = used - count_of(member) end
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', text(latest - window))
end
local occupied, grants = used, {}
for id, grant in pairs(open) do
  local released = grant[1] + grant[3] + window
  if released <= latest then
    ended[#ended + 1] = id
  else
    occupied = occupied + grant[2]
    grants[#grants + 1] = {released, grant[2]}
  end
end
for first = 1, #ended, 1000 do redis.call('HDEL', KEYS[2], unpack(ended, first, math.min(first + 999, #ended))) end
local available = limit - occupied
if available <= 0 then
  redis.call('HSET', KEYS[2], 'latest', text(latest), 'wall', now, 'used', text(used))
  local missing = occupied + 1 - limit
  local oldest = redis.call('ZRANGE', KEYS[1], 0, missing - 1, 'WITHSCORES')
  for place = 1, #oldest, 2 do grants[#grants + 1] = {tonumber(oldest[place + 1]) + window, count_of(oldest[place])} end
  table.sort(grants, function(one, other) return one[1] < other[1] end)
  local free_at = latest + window
  for _, release in ipairs(grants) do
    if release[2] >= missing then free_at = release[1] break end
    missing = missing - release[2]
  end
  redis.call('PEXPIRE', KEYS[1], 120000)
  redis.call('PEXPIRE', KEYS[2], 120000)
  return {'full', text(free_at - latest)}
end
local most = math.max(math.floor(available / share), 1)
local count, life = math.min(long, most), long_life
if count <= 1 or (available - count) * 2 < limit then count, life = math.max(1, math.min(soon, most)), brief_life end
last = math.max(latest, last + 1)
local moments = {'latest', text(latest), 'wall', now, 'last', text(last), 'used', text(used)}
redis.call('HSET', KEYS[2], text(last), text(latest) .. ' ' .. text(count) .. ' ' .. text(life), unpack(moments))
redis.call('PEXPIRE', KEYS[1], 120000)
redis.call('PEXPIRE', KEYS[2], 120000)
local first = latest + life + window
for _, grant in ipairs(grants) do first = math.min(first, grant[1]) end
local oldest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if oldest[2] then first = math.min(first, tonumber(oldest[2]) + window) end
return {'granted', text(last), text(count), text(math.max(life, 0)), text(available - count), text(math.min(first - latest, window))}
",
    )
});

/// KEYS window and grants of each key. ARGV age from which on a use counts no more in µs, then for each key: number of uses, and each:
/// grant, place in its report, age in µs. A use that is known stays where it is; one that is not counts from its age;
/// a grant that is open is closed; no grant is ever named again (protocol 2, a store that forgot).
pub(super) static RECALL: LazyLock<Script> = LazyLock::new(|| {
    with_common(
        r"
local keep = tonumber(ARGV[1])
local function text(number) return string.format('%.0f', number) end
local at = 2
for key = 1, #KEYS, 2 do
  local kept = redis.call('HMGET', KEYS[key + 1], 'latest', 'wall', 'last', 'used')
  local latest, last = logical(tonumber(kept[1] or ''), tonumber(kept[2] or '')), tonumber(kept[3] or '0')
  local used, known = tonumber(kept[4] or '0'), {}
  for _, member in ipairs(redis.call('ZRANGE', KEYS[key], 0, -1)) do
    local grant, first, count = string.match(member, '^(%d+):(%d+):(%d+)$')
    known[grant] = known[grant] or {}
    table.insert(known[grant], {tonumber(first), tonumber(first) + tonumber(count)})
  end
  local function is_known(grant, number)
    for _, group in ipairs(known[grant] or {}) do
      if group[1] <= number and number < group[2] then return true end
    end
    return false
  end
  for use = 1, tonumber(ARGV[at]) do
    local grant, number, age = ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
    if age < keep and not is_known(grant, tonumber(number)) then
      used = used + redis.call('ZADD', KEYS[key], 'NX', text(latest - age), grant .. ':' .. number .. ':1')
    end
    redis.call('HDEL', KEYS[key + 1], grant)
    last = math.max(last, tonumber(grant))
    at = at + 3
  end
  at = at + 1
  redis.call('HSET', KEYS[key + 1], 'latest', text(latest), 'wall', now, 'last', text(last), 'used', text(used))
  redis.call('PEXPIRE', KEYS[key], 120000)
  redis.call('PEXPIRE', KEYS[key + 1], 120000)
end
return 0
",
    )
});

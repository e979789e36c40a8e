//! The scripts of the activity log (protocol 3): what ships records, and what reads them.
//!
//! A shipment is nearly all that Redis does, so its script does per record what cannot be done otherwise, an XADD for the
//! consumers, and everything else once per firm or key. It takes a whole shipment or nothing: one that overlaps what is
//! there is answered with the mark, and comes again from behind it.

use std::sync::LazyLock;

use super::schema::with_common;
use super::script::{Script, guarded};

/// KEYS mark. Answers it. A stranger has none, and must not be taken for a store that has forgotten everything.
pub(super) static MARK: LazyLock<Script> = LazyLock::new(|| guarded("return redis.call('GET', KEYS[1]) or '0'"));

/// KEYS mark, stream, firms, spools, each firm's log and times, each key's uses, tools and networks. ARGV prefix, oldest
/// age kept in µs or nothing, up to where the spool has lost what is not here, first and last sequence of the batch, of
/// which this partition has only its own records; number of those, each packed; number of firms, each: firm, number of
/// blocks, each with its newest time before it; number of keys used, each: time, agent, address, number of tools, each with its time
/// before it, the same of networks, number of hours, each with its uses. Answers `taken` and the mark; or, having left nothing, `partly` and the mark where some were
/// taken before, or `gap` and the mark where some are missing (protocol 3).
pub(super) static SHIP: LazyLock<Script> = LazyLock::new(|| {
    with_common(
        r"
local call, unpacked = redis.call, cmsgpack.unpack
local prefix, known = ARGV[1], tonumber(call('GET', KEYS[1]) or '0')
local mark, first, last = math.max(known, tonumber(ARGV[3])), tonumber(ARGV[4]), tonumber(ARGV[5])
local function text(number) return string.format('%.0f', number) end
if first > mark + 1 then return {'gap', text(mark)} end
if first <= mark and last > mark then return {'partly', text(mark)} end
local at, key = 6, 4
local function next_argument()
  at = at + 1
  return ARGV[at]
end
local function note_seen(name)
  local count = tonumber(next_argument())
  if count > 0 and call('ZADD', name, 'GT', unpack(ARGV, at + 1, at + 2 * count)) > 0 then
    call('ZREMRANGEBYRANK', name, 0, -9)
  end
  at = at + 2 * count
end
if last > mark then
  local stream = KEYS[2]
  for record = 7, 6 + tonumber(ARGV[6]) do call('XADD', stream, '*', unpacked(ARGV[record])) end
  at = 6 + tonumber(ARGV[6])
  local firms = {}
  for firm = 1, tonumber(next_argument()) do
    local name, oldest = next_argument(), math.huge
    for block = 1, tonumber(next_argument()) do
      local newest = next_argument()
      add_block(KEYS[key + 1], KEYS[key + 2], newest, next_argument())
      oldest = math.min(oldest, tonumber(newest))
    end
    firms[2 * firm - 1], firms[2 * firm] = text(oldest), name
    key = key + 2
  end
  if #firms > 0 then call('ZADD', KEYS[3], 'LT', unpack(firms)) end
  for number = 1, tonumber(next_argument()) do
    local uses, newest = KEYS[key + 1], next_argument()
    local before = call('HGET', uses, 'at')
    if not before or tonumber(before) <= tonumber(newest) then
      call('HSET', uses, 'at', newest, 'user_agent', ARGV[at + 1], 'client_ip', ARGV[at + 2])
    end
    at = at + 2
    note_seen(KEYS[key + 2])
    note_seen(KEYS[key + 3])
    for counted = 1, tonumber(next_argument()) do
      local hour, count = tonumber(next_argument()), tonumber(next_argument())
      local name = 'hour' .. (hour % 24)
      local kept, before = string.match(call('HGET', uses, name) or '', '^(%d+) (%d+)$')
      if kept and tonumber(kept) == hour then count = count + tonumber(before) end
      if not kept or tonumber(kept) <= hour then call('HSET', uses, name, text(hour) .. ' ' .. text(count)) end
    end
    key = key + 3
  end
end
last = math.max(mark, last)
if last > known then
  call('SET', KEYS[1], text(last))
  call('SADD', KEYS[4], string.sub(KEYS[1], #prefix + 6))
end
if ARGV[2] ~= '' then
  local oldest = tonumber(now) - tonumber(ARGV[2])
  call('XTRIM', KEYS[2], 'MINID', '~', text(math.max(0, math.floor(oldest / 1000))))
  local left = 1000
  for _, firm in ipairs(call('ZRANGE', KEYS[3], '-inf', '(' .. text(oldest), 'BYSCORE', 'LIMIT', 0, 16)) do
    local times, log = of_firm(prefix, firm, 'times'), of_firm(prefix, firm, 'log')
    while left > 0 do
      local old = call('ZRANGE', times, '-inf', '(' .. text(oldest), 'BYSCORE', 'LIMIT', 0, math.min(left, 500))
      if #old == 0 then break end
      call('XDEL', log, unpack(old))
      call('ZREM', times, unpack(old))
      left = left - #old
    end
    local first = call('ZRANGE', times, 0, 0, 'WITHSCORES')
    call('ZADD', KEYS[3], first[2] or '+inf', firm)
  end
end
return {'taken', text(last)}
",
    )
});

/// KEYS firm's times, firm's log. ARGV latest time, id below which a block of that time must be or nothing, earliest time,
/// two texts that a block must hold or nothing, bytes after which it is enough, most blocks looked at. Answers the time
/// and id of the last one looked at, both empty when there are no more, and the blocks, newest first.
pub(super) static NEWEST: LazyLock<Script> = LazyLock::new(|| {
    guarded(
        r"
local latest, before = ARGV[1], ARGV[2]
local answer, passed, looked, bytes = {'', ''}, 0, 0, 0
local function holds(block, text) return text == '' or string.find(block, text, 1, true) end
while looked < tonumber(ARGV[7]) do
  local chunk = redis.call('ZRANGE', KEYS[1], latest, ARGV[3], 'BYSCORE', 'REV', 'LIMIT', passed, 20, 'WITHSCORES')
  if #chunk == 0 then
    answer[1], answer[2] = '', ''
    return answer
  end
  for at = 1, #chunk, 2 do
    local id, newest = chunk[at], chunk[at + 1]
    passed = passed + 1
    if before == '' or tonumber(newest) ~= tonumber(latest) or id < before then
      looked = looked + 1
      local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
      local block = entry and entry[2][2]
      if block and holds(block, ARGV[4]) and holds(block, ARGV[5]) then
        answer[#answer + 1] = block
        bytes = bytes + #block
      end
      answer[1], answer[2] = newest, id
    end
    if bytes >= tonumber(ARGV[6]) then return answer end
  end
end
return answer
",
    )
});

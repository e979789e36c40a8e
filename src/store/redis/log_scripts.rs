//! The scripts of the activity log (protocol 3): what ships records, and what reads them.
//!
//! A shipment is nearly all that Redis does, so its script does per record what cannot be done otherwise, an XADD for the
//! consumers, and everything else once per firm or key. It takes a whole shipment or nothing: one that overlaps what is
//! there is answered with the mark, and comes again from behind it.

use std::sync::LazyLock;

use super::schema::with_common;
use super::script::{Script, guarded};
use super::uses::{self, NOTING};

/// KEYS mark. Answers it. A stranger has none, and must not be taken for a store that has forgotten everything.
pub(super) static MARK: LazyLock<Script> = LazyLock::new(|| guarded("return redis.call('GET', KEYS[1]) or '0'"));

/// KEYS mark, stream, firms, spools, each firm's log, times, changes and uses. ARGV prefix, oldest
/// age kept in µs or nothing, up to where the spool has lost what is not here, first and last sequence of the batch, of
/// which this partition has only its own records; number of runs of those, each: the names of their fields, number of records,
/// their values, packed; number of firms, each: firm, number of
/// blocks, each after its newest time and what it is about; the keys used, packed, and what is told of each, packed twice.
/// Answers `taken` and the mark; or, having left nothing, `partly` and the mark where some were taken before, or `gap` and
/// the mark where some are missing (protocol 3).
pub(super) static SHIP: LazyLock<Script> = LazyLock::new(|| {
    with_common(&format!(
        "{}{NOTING}{}",
        uses::bounds(),
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
-- Adds an entry with these fields, whose values follow. The names are constants of it, which costs less than to tell them.
local function adder_of(names)
  local values, pairs = {}, {}
  for name in string.gmatch(names, '[%l_]+') do
    values[#values + 1] = 'v' .. #values
    pairs[#pairs + 1] = string.format(', %q, v%d', name, #pairs)
  end
  local head = 'local call, stream, ' .. table.concat(values, ', ') .. ' = ... '
  return loadstring(head .. [[call('XADD', stream, '*']] .. table.concat(pairs) .. ')')
end
if last > mark then
  local stream = KEYS[2]
  local adders = {}
  for run = 1, tonumber(ARGV[6]) do
    local names, count = next_argument(), tonumber(next_argument())
    local add = adders[names] or adder_of(names)
    adders[names] = add
    for record = at + 1, at + count do add(call, stream, unpacked(ARGV[record])) end
    at = at + count
  end
  local firms = {}
  for firm = 1, tonumber(next_argument()) do
    local name, oldest = next_argument(), math.huge
    for block = 1, tonumber(next_argument()) do
      local newest, about = next_argument(), next_argument()
      add_block(KEYS[key + 1], KEYS[key + 2], KEYS[key + 3], newest, next_argument(), about)
      oldest = math.min(oldest, tonumber(newest))
    end
    firms[2 * firm - 1], firms[2 * firm] = text(oldest), name
    local ids, notes = {unpacked(next_argument())}, {unpacked(next_argument())}
    if #ids > 0 then note_uses(KEYS[key + 4], ids, notes) end
    key = key + 4
  end
  if #firms > 0 then call('ZADD', KEYS[3], 'LT', unpack(firms)) end
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
    local times, log, changes = of_firm(prefix, firm, 'times'), of_firm(prefix, firm, 'log'), of_firm(prefix, firm, 'changes')
    while left > 0 do
      local old = call('ZRANGE', times, '-inf', '(' .. text(oldest), 'BYSCORE', 'LIMIT', 0, math.min(left, 500))
      if #old == 0 then break end
      local ids = {}
      for place, member in ipairs(old) do ids[place] = string.match(member, '^%S+') end
      call('XDEL', log, unpack(ids))
      call('ZREM', times, unpack(old))
      call('ZREM', changes, unpack(old))
      left = left - #old
    end
    local first = call('ZRANGE', times, 0, 0, 'WITHSCORES')
    call('ZADD', KEYS[3], first[2] or '+inf', firm)
  end
end
return {'taken', text(last)}
",
    ))
});

/// KEYS firm's times or changes, firm's log. ARGV latest time, member below which a block of that time must be or nothing,
/// earliest time, two texts that a block must hold or nothing, `,` and the end of a key's id that it must be about or nothing,
/// bytes after which it is enough, most blocks read, most passed over. Answers the time and member of the last one passed,
/// both empty when there are no more, and the blocks, newest first.
pub(super) static NEWEST: LazyLock<Script> = LazyLock::new(|| {
    guarded(
        r"
local latest, before, key_end = ARGV[1], ARGV[2], ARGV[6]
local answer, passed, looked, bytes, last = {'', ''}, 0, 0, 0, nil
local function score(member) return redis.call('ZSCORE', KEYS[1], member) end
local function holds(block, text) return text == '' or string.find(block, text, 1, true) end
-- By ranks, which do not cost the more the further one has come.
local first = latest == '+inf' and 0 or redis.call('ZCOUNT', KEYS[1], '(' .. latest, '+inf')
local past = redis.call('ZCARD', KEYS[1])
if ARGV[3] ~= '-inf' then past = past - redis.call('ZCOUNT', KEYS[1], '-inf', '(' .. ARGV[3]) end
local find, byte = string.find, string.byte
-- Among blocks of one time, those from `before` on were answered earlier.
local is_level = before ~= ''
while looked < tonumber(ARGV[8]) and passed < tonumber(ARGV[9]) do
  local from, size = first + passed, math.min(20 + passed, 1000)
  if from >= past then return answer end
  local chunk = redis.call('ZRANGE', KEYS[1], from, math.min(from + size, past) - 1, 'REV')
  for _, member in ipairs(chunk) do
    passed = passed + 1
    is_level = is_level and tonumber(score(member)) == tonumber(latest)
    if not is_level or member < before then
      last = member
      if key_end == '' or find(member, key_end, 1, true) or byte(member, -1) == 42 then
        looked = looked + 1
        local id = string.match(member, '^%S+')
        local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
        local block = entry and entry[2][2]
        if block and holds(block, ARGV[4]) and holds(block, ARGV[5]) then
          answer[#answer + 1] = block
          bytes = bytes + #block
        end
        if bytes >= tonumber(ARGV[7]) or looked >= tonumber(ARGV[8]) then break end
      end
    end
  end
  if bytes >= tonumber(ARGV[7]) then break end
end
answer[1], answer[2] = last and score(last) or latest, last or before
return answer
",
    )
});

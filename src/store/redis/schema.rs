//! What Redis holds: every key's name, and every script that changes or reads more than one of them.
//!
//! All names of a partition share its hash tag, so a script touches one slot. Texts within names are led by their length,
//! so that no two are spelt alike. Times are microseconds of the store's `TIME`, which a double holds exactly.

// Each begins with `assure:{p0}:`, but for the stream for consumers, whose name is configured.
//
//   schema                       layout version           store                 a token, made once
//   epoch                        number                   sessions              replica, incarnation → applied, renewals, lease
//   revoked                      stream, id = epoch       untold                newest epoch that left that stream
//   id:KEY                       → digest                 record:DIGEST         hash: the record
//   firm:N:FIRM:live             set of live key ids, never a counter; firm:N:FIRM:creator:N:USER:live likewise
//   firm:N:FIRM:keys             key ids by creation      call:N:FIRM:N:USER:…  Idempotency-Key → digest, 24 h
//   firm:N:FIRM:log              records as they came     firm:N:FIRM:times     (time, event) → place in the log
//   firms                        firm → time of its oldest record, for trimming
//   uses:KEY                     last use                 tools:KEY, networks:KEY   what it was seen with, by time
//   window:KEY                   times of use             grants:KEY            open grants, logical clock
//   mark:SPOOL                   last sequence taken

use std::sync::LazyLock;

use redis::Script;
use uuid::Uuid;

use crate::domain::{FirmId, KeyDigest, KeyId, UserId};

/// Which layout this version reads and writes.
pub(super) const SCHEMA: &str = "1";
/// What every name of the one partition begins with.
pub(super) const PREFIX: &str = "assure:{p0}:";
/// Where a change's epoch is published, to hasten the other replicas.
pub(super) const NEWS: &str = "assure:{p0}:news";

pub(super) fn named(name: &str) -> String {
    format!("{PREFIX}{name}")
}

pub(super) fn record(digest: &KeyDigest) -> String {
    format!("{PREFIX}record:{}", hex(digest))
}

pub(super) fn id(key: KeyId) -> String {
    format!("{PREFIX}id:{key}")
}

pub(super) fn of_key(what: &str, key: KeyId) -> String {
    format!("{PREFIX}{what}:{key}")
}

pub(super) fn mark(spool: Uuid) -> String {
    format!("{PREFIX}mark:{spool}")
}

pub(super) fn of_firm(firm: &FirmId, what: &str) -> String {
    format!("{PREFIX}firm:{}:{firm}:{what}", firm.as_str().len())
}

pub(super) fn of_creator(firm: &FirmId, creator: &UserId) -> String {
    of_firm(firm, &format!("creator:{}:{creator}:live", creator.as_str().len()))
}

pub(super) fn call(firm: &FirmId, creator: &UserId, text: &str) -> String {
    format!("{PREFIX}call:{}:{firm}:{}:{creator}:{text}", firm.as_str().len(), creator.as_str().len())
}

/// The digest as it stands in names and fields.
pub(super) fn hex(digest: &KeyDigest) -> String {
    use std::fmt::Write;
    digest.as_bytes().iter().fold(String::with_capacity(64), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to memory does not fail");
        text
    })
}

/// The digest that such a text spells.
pub(super) fn digest(hex: &str) -> Option<KeyDigest> {
    let mut bytes = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * place..2 * place + 2)?, 16).ok()?;
    }
    Some(KeyDigest::from_bytes(bytes))
}

/// What several scripts begin with: the store's time as a number of microseconds and as RFC 3339 (the calendar by
/// days since 0000-03-01, of which 146,097 make 400 years), and how a record enters the log.
const COMMON: &str = r"
local time = redis.call('TIME')
local now = time[1] .. string.format('%06d', tonumber(time[2]))
local function rfc3339()
  local seconds = tonumber(time[1])
  local days, rest = math.floor(seconds / 86400) + 719468, seconds % 86400
  local era = math.floor(days / 146097)
  local day = days - era * 146097
  local year = math.floor((day - math.floor(day / 1460) + math.floor(day / 36524) - math.floor(day / 146096)) / 365)
  day = day - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local month = math.floor((5 * day + 2) / 153)
  day = day - math.floor((153 * month + 2) / 5) + 1
  month = month < 10 and month + 3 or month - 9
  year = year + era * 400 + (month <= 2 and 1 or 0)
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%06dZ', year, month, day, math.floor(rest / 3600),
    math.floor(rest / 60) % 60, rest % 60, tonumber(time[2]))
end
local function of_firm(prefix, firm, what)
  return prefix .. 'firm:' .. #firm .. ':' .. firm .. ':' .. what
end
local function append(prefix, stream, firm, micros, event, fields)
  redis.call('XADD', stream, '*', unpack(fields))
  local place = redis.call('XADD', of_firm(prefix, firm, 'log'), '*', unpack(fields))
  redis.call('ZADD', of_firm(prefix, firm, 'times'), micros, event .. ' ' .. place)
  redis.call('ZADD', prefix .. 'firms', 'LT', micros, firm)
end
-- The fields from `first` on, in pairs, with some of them replaced.
local function fields_from(first, replaced)
  local fields = {}
  for at = first, #ARGV, 2 do
    fields[#fields + 1] = ARGV[at]
    fields[#fields + 1] = replaced[ARGV[at]] or ARGV[at + 1]
  end
  return fields
end
";

fn with_common(script: &str) -> Script {
    Script::new(&format!("{COMMON}{script}"))
}

/// KEYS epoch, record. Answers the epoch and the record's fields, of one moment.
pub(super) static FIND: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local fields = redis.call('HGETALL', KEYS[2])
table.insert(fields, 1, redis.call('GET', KEYS[1]) or '0')
return fields
",
    )
});

/// KEYS epoch, sessions, revoked, untold, store. ARGV replica, incarnation, applied, lease in ms, fresh token.
/// Answers the epoch, the store's incarnation, `flush` or `revoked`, and the digests revoked since `applied`.
/// Who says it has applied more than there is has seen another store, and has applied nothing of this one.
pub(super) static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local epoch = redis.call('GET', KEYS[1]) or '0'
redis.call('SET', KEYS[5], ARGV[5], 'NX')
local foreign = tonumber(ARGV[3]) > tonumber(epoch)
local session = ARGV[1] .. ' ' .. ARGV[2]
local known = redis.call('HGET', KEYS[2], session)
local renewals = known and tonumber(string.match(known, '^%d+ (%d+)')) or 0
local applied = foreign and '0' or ARGV[3]
redis.call('HSET', KEYS[2], session, applied .. ' ' .. string.format('%.0f', renewals + 1) .. ' ' .. ARGV[4])
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or ''
local answer = {epoch, redis.call('GET', KEYS[5]) .. ' ' .. run}
if foreign or tonumber(applied) < tonumber(redis.call('GET', KEYS[4]) or '0') then
  answer[3] = 'flush'
  return answer
end
answer[3] = 'revoked'
local first = string.format('%.0f', tonumber(applied) + 1)
for _, entry in ipairs(redis.call('XRANGE', KEYS[3], first .. '-0', '+')) do
  answer[#answer + 1] = entry[2][2]
end
return answer
",
    )
});

/// KEYS sessions. ARGV pairs of a session and what it last said. Forgets those that have said nothing since.
pub(super) static FORGET: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
for at = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[at]) == ARGV[at + 1] then
    redis.call('HDEL', KEYS[1], ARGV[at])
  end
end
return 0
",
    )
});

/// KEYS epoch, record, id, firm's live, creator's live, firm's keys, call (or the id again), stream.
/// ARGV prefix, digest, key id, firm, firm's most, creator's most, news, event, `call` or nothing, number of the
/// record's fields, those, the audit fields. Answers a word and what belongs to it (protocol 4).
pub(super) static CREATE: LazyLock<Script> = LazyLock::new(|| {
    with_common(
        r"
local prefix, has_call = ARGV[1], ARGV[9] == 'call'
local earlier = redis.call('GET', KEYS[3]) or (has_call and redis.call('GET', KEYS[7]))
if earlier then
  local fields = redis.call('HGETALL', prefix .. 'record:' .. earlier)
  table.insert(fields, 1, 'replayed')
  return fields
end
if redis.call('EXISTS', KEYS[2]) == 1 then return {'taken'} end
if redis.call('SCARD', KEYS[4]) >= tonumber(ARGV[5]) then return {'firm_full'} end
if redis.call('SCARD', KEYS[5]) >= tonumber(ARGV[6]) then return {'creator_full'} end
local count = tonumber(ARGV[10])
local record = {}
for at = 11, 10 + count do record[#record + 1] = ARGV[at] end
redis.call('HSET', KEYS[2], 'created_at', now, unpack(record))
redis.call('SET', KEYS[3], ARGV[2])
redis.call('SADD', KEYS[4], ARGV[3])
redis.call('SADD', KEYS[5], ARGV[3])
redis.call('ZADD', KEYS[6], now, ARGV[3])
if has_call then redis.call('SET', KEYS[7], ARGV[2], 'EX', 86400) end
append(prefix, KEYS[8], ARGV[4], now, ARGV[8], fields_from(11 + count, {time = rfc3339()}))
local epoch = string.format('%.0f', redis.call('INCR', KEYS[1]))
redis.call('PUBLISH', ARGV[7], epoch)
return {'created', epoch, now}
",
    )
});

/// Entries of the stream of revocations; whoever has missed more forgets its whole cache.
const REVOKED_KEPT: usize = 10_000;

/// KEYS epoch, revoked, untold, stream. ARGV prefix, key id or nothing, digest if there is no id, firm or nothing for
/// any, by, reason, news, event, the audit fields. Answers `none`, or `first` or `again`, the epoch and the record.
pub(super) static REVOKE: LazyLock<Script> = LazyLock::new(|| {
    let kept = format!("local kept = {REVOKED_KEPT}\n");
    with_common(&format!(
        "{kept}{}",
        r"
local prefix = ARGV[1]
local digest = ARGV[2] == '' and ARGV[3] or redis.call('GET', prefix .. 'id:' .. ARGV[2])
if not digest then return {'none'} end
local record = prefix .. 'record:' .. digest
local known = redis.call('HMGET', record, 'firm_id', 'creator', 'id', 'name', 'prefix', 'revoked_at')
local firm, creator, id = known[1], known[2], known[3]
if not firm or (ARGV[4] ~= '' and ARGV[4] ~= firm) then return {'none'} end
if known[6] then
  local fields = redis.call('HGETALL', record)
  table.insert(fields, 1, redis.call('GET', KEYS[1]) or '0')
  table.insert(fields, 1, 'again')
  return fields
end
redis.call('HSET', record, 'revoked_at', now, 'revoked_by', ARGV[5], 'revoked_reason', ARGV[6])
redis.call('SREM', of_firm(prefix, firm, 'live'), id)
redis.call('SREM', of_firm(prefix, firm, 'creator:' .. #creator .. ':' .. creator .. ':live'), id)
local epoch = string.format('%.0f', redis.call('INCR', KEYS[1]))
redis.call('XADD', KEYS[2], epoch .. '-0', 'digest', digest)
if redis.call('XLEN', KEYS[2]) > kept then
  local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1][1]
  redis.call('SET', KEYS[3], (string.match(oldest, '^%d+')))
  redis.call('XDEL', KEYS[2], oldest)
end
append(prefix, KEYS[4], firm, now, ARGV[8], fields_from(9,
  {time = rfc3339(), firm_id = firm, key_id = id, key_name = known[4], key_prefix = known[5]}))
redis.call('PUBLISH', ARGV[7], epoch)
local fields = redis.call('HGETALL', record)
table.insert(fields, 1, epoch)
table.insert(fields, 1, 'first')
return fields
",
    ))
});

/// KEYS none or ids' keys. ARGV prefix, then key ids. Answers, for each, the record's fields, its last use, and the tools
/// and networks it was seen with since ARGV[2], newest first.
pub(super) static VIEWS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local prefix, since, ids = ARGV[1], ARGV[2], {}
if ARGV[3] == 'firm' then ids = redis.call('ZRANGE', KEYS[1], 0, -1) else ids[1] = ARGV[4] end
local views = {}
for at, id in ipairs(ids) do
  local digest = redis.call('GET', prefix .. 'id:' .. id)
  if digest then
    views[#views + 1] = {
      redis.call('HGETALL', prefix .. 'record:' .. digest),
      redis.call('HGETALL', prefix .. 'uses:' .. id),
      redis.call('ZRANGE', prefix .. 'tools:' .. id, '+inf', since, 'BYSCORE', 'REV'),
      redis.call('ZRANGE', prefix .. 'networks:' .. id, '+inf', since, 'BYSCORE', 'REV'),
    }
  end
end
return views
",
    )
});

/// KEYS window, grants. ARGV limit, want, share, window and grant life in µs, then each report: id, number of uses,
/// those. The arithmetic of `domain::window` in microseconds (protocol 2): a logical clock that never goes back; closed
/// grants are replaced by their uses; open ones count wholly until a window after the end of their life.
pub(super) static PERMITS: LazyLock<Script> = LazyLock::new(|| {
    with_common(
        r"
local limit, want, share = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local window, life = tonumber(ARGV[4]), tonumber(ARGV[5])
local function text(number) return string.format('%.0f', number) end
local latest, last, open = tonumber(now), 0, {}
local kept = redis.call('HGETALL', KEYS[2])
for at = 1, #kept, 2 do
  if kept[at] == 'latest' then latest = math.max(latest, tonumber(kept[at + 1]))
  elseif kept[at] == 'last' then last = tonumber(kept[at + 1])
  else
    local granted, count = string.match(kept[at + 1], '^(%d+) (%d+)$')
    open[kept[at]] = {tonumber(granted), tonumber(count)}
  end
end
local at = 6
while at <= #ARGV do
  local id, uses = ARGV[at], tonumber(ARGV[at + 1])
  local grant = open[id]
  if grant then
    for number = 1, math.min(uses, grant[2]) do
      redis.call('ZADD', KEYS[1], text(grant[1] + math.min(tonumber(ARGV[at + 1 + number]), life)), id .. ':' .. number)
    end
    redis.call('HDEL', KEYS[2], id)
    open[id] = nil
  end
  at = at + 2 + uses
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', text(latest - window))
local occupied, oldest, grants = redis.call('ZCARD', KEYS[1]), nil, {}
for id, grant in pairs(open) do
  local released = grant[1] + life + window
  if released <= latest then
    redis.call('HDEL', KEYS[2], id)
  else
    occupied = occupied + grant[2]
    grants[#grants + 1] = {released, grant[2]}
  end
end
redis.call('HSET', KEYS[2], 'latest', text(latest))
local available = limit - occupied
if available <= 0 then
  local missing = occupied + 1 - limit
  local used = redis.call('ZRANGE', KEYS[1], 0, missing - 1, 'WITHSCORES')
  for place = 2, #used, 2 do grants[#grants + 1] = {tonumber(used[place]) + window, 1} end
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
local count = math.max(1, math.min(want, math.max(math.floor(available / share), 1)))
last = math.max(latest, last + 1)
redis.call('HSET', KEYS[2], 'last', text(last), text(last), text(latest) .. ' ' .. count)
redis.call('PEXPIRE', KEYS[1], 120000)
redis.call('PEXPIRE', KEYS[2], 120000)
local first = latest + life + window
for _, grant in ipairs(grants) do first = math.min(first, grant[1]) end
local used = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if used[2] then first = math.min(first, tonumber(used[2]) + window) end
return {'granted', text(last), text(count), text(available - count), text(math.min(first - latest, window))}
",
    )
});

/// KEYS mark, stream, firms. ARGV prefix, oldest age kept in µs or nothing, number of records, then each record:
/// sequence, firm, time, event, number of fields, those; then number of keys used, then each: id, time, agent, address,
/// number of tools, each with its time, number of networks, each with its time. Answers `taken` and the mark, or `gap`,
/// the sequence and the mark; a batch with a gap leaves nothing (protocol 3).
pub(super) static SHIP: LazyLock<Script> = LazyLock::new(|| {
    with_common(
        r"
local prefix = ARGV[1]
local mark = tonumber(redis.call('GET', KEYS[1]) or '0')
local function text(number) return string.format('%.0f', number) end
local records, at, last = {}, 4, mark
for number = 1, tonumber(ARGV[3]) do
  local sequence, count = tonumber(ARGV[at]), tonumber(ARGV[at + 4])
  if sequence > last + 1 then return {'gap', ARGV[at], text(last)} end
  if sequence == last + 1 then
    last = sequence
    records[#records + 1] = at
  end
  at = at + 5 + count
end
for _, place in ipairs(records) do
  local fields = {}
  for field = place + 5, place + 4 + tonumber(ARGV[place + 4]) do fields[#fields + 1] = ARGV[field] end
  append(prefix, KEYS[2], ARGV[place + 1], ARGV[place + 2], ARGV[place + 3], fields)
end
if last > mark then
  redis.call('SET', KEYS[1], text(last))
  local keys = tonumber(ARGV[at])
  at = at + 1
  local function note_seen(name)
    local count = tonumber(ARGV[at])
    at = at + 1
    for number = 1, count do
      redis.call('ZADD', name, 'GT', ARGV[at + 1], ARGV[at])
      at = at + 2
    end
    redis.call('ZREMRANGEBYRANK', name, 0, -9)
  end
  for number = 1, keys do
    local id = ARGV[at]
    local uses = prefix .. 'uses:' .. id
    local known = redis.call('HGET', uses, 'at')
    if not known or tonumber(known) <= tonumber(ARGV[at + 1]) then
      redis.call('HSET', uses, 'at', ARGV[at + 1], 'user_agent', ARGV[at + 2], 'client_ip', ARGV[at + 3])
    end
    at = at + 4
    note_seen(prefix .. 'tools:' .. id)
    note_seen(prefix .. 'networks:' .. id)
  end
end
if ARGV[2] ~= '' then
  local oldest = tonumber(now) - tonumber(ARGV[2])
  redis.call('XTRIM', KEYS[2], 'MINID', '~', text(math.max(0, math.floor(oldest / 1000))))
  local left = 2000
  for _, firm in ipairs(redis.call('ZRANGE', KEYS[3], '-inf', '(' .. text(oldest), 'BYSCORE', 'LIMIT', 0, 16)) do
    local times, log = of_firm(prefix, firm, 'times'), of_firm(prefix, firm, 'log')
    while left > 0 do
      local old = redis.call('ZRANGE', times, '-inf', '(' .. text(oldest), 'BYSCORE', 'LIMIT', 0, math.min(left, 500))
      if #old == 0 then break end
      local places = {}
      for place, member in ipairs(old) do places[place] = string.sub(member, 34) end
      redis.call('XDEL', log, unpack(places))
      redis.call('ZREM', times, unpack(old))
      left = left - #old
    end
    local first = redis.call('ZRANGE', times, 0, 0, 'WITHSCORES')
    if first[2] then redis.call('ZADD', KEYS[3], first[2], firm) else redis.call('ZREM', KEYS[3], firm) end
  end
end
return {'taken', text(last)}
",
    )
});

/// KEYS firm's times, firm's log. ARGV latest score, event below which one at that score must be or nothing, earliest
/// score, key or nothing, action or nothing, most records, most looked at. Answers the score and event of the last one
/// looked at, both empty when there are no more, and the records' fields, newest first.
pub(super) static NEWEST: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local latest, before = ARGV[1], ARGV[2]
local answer, looked, most, budget = {'', ''}, 0, tonumber(ARGV[6]), tonumber(ARGV[7])
while true do
  local chunk = redis.call('ZRANGE', KEYS[1], latest, ARGV[3], 'BYSCORE', 'REV', 'LIMIT', looked, 100, 'WITHSCORES')
  if #chunk == 0 then
    answer[1], answer[2] = '', ''
    return answer
  end
  for at = 1, #chunk, 2 do
    local event, place = string.sub(chunk[at], 1, 32), string.sub(chunk[at], 34)
    looked = looked + 1
    if before == '' or tonumber(chunk[at + 1]) ~= tonumber(latest) or event < before then
      local entry = redis.call('XRANGE', KEYS[2], place, place)[1]
      if entry then
        local fits = true
        for field = 1, #entry[2], 2 do
          local name, value = entry[2][field], entry[2][field + 1]
          if (name == 'key_id' and ARGV[4] ~= '' and value ~= ARGV[4])
            or (name == 'action' and ARGV[5] ~= '' and value ~= ARGV[5]) then fits = false end
        end
        if fits then answer[#answer + 1] = entry[2] end
      end
    end
    answer[1], answer[2] = chunk[at + 1], event
    if #answer - 2 == most then return answer end
  end
  if looked >= budget then return answer end
end
",
    )
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_reads_back_and_garbage_does_not() {
        let known = KeyDigest::from_bytes([0xa5; 32]);
        assert_eq!(digest(&hex(&known)), Some(known));
        assert_eq!((digest("a5"), digest(&"é".repeat(32))), (None, None));
    }

    #[test]
    fn names_of_firms_and_creators_cannot_be_confused() {
        let firm = |text| FirmId::parse(text).unwrap();
        let user = |text| UserId::parse(text).unwrap();
        assert_ne!(of_creator(&firm("a"), &user("b:c")), of_creator(&firm("a:b"), &user("c")));
        assert_ne!(of_firm(&firm("a:1"), "live"), of_firm(&firm("a"), "1:live"));
    }
}

//! What Redis holds: every key's name, and every script that changes or reads more than one of them.
//!
//! All names of a partition share its hash tag, so a script touches one slot of a Cluster. The tag is the name of the
//! partition's audit stream: as a whole name it lies in the same slot. Partition 0 has the stream as it is configured,
//! partition 1 that name and `:1`, and so on. Texts within names are led by their length, so that no two are spelt alike.
//! Times are microseconds of the store's `TIME`, which a double holds exactly.

// `assure:stores` is a hash: the configured stream → the layout and number of partitions under it. With the stream
// `assure:audit`, every other name of partition 1 begins with `assure:{assure:audit:1}:`, but for its stream.
//
//   epoch                        number                   sessions              replica, incarnation → applied, renewals, lease
//   revoked                      stream, id = epoch       untold                newest epoch that left that stream
//   store                        a token, made once       barrier               nothing; written before a WAIT
//   settled                      the run that some gateway trusts, a term after it told it all that it remembered
//   id:KEY                       → digest                 record:DIGEST         hash: the record
//   firm:N:FIRM:live             set of live key ids, never a counter; firm:N:FIRM:creator:N:USER:live likewise
//   firm:N:FIRM:keys             key ids by creation      call:N:FIRM:N:USER:…  Idempotency-Key → digest, 24 h
//   firm:N:FIRM:log              blocks of records as they came (see `blocks`)
//   firm:N:FIRM:times            newest time of a block → its id in the log, and what it is about (see `blocks`)
//   firm:N:FIRM:changes          the same of those blocks alone that hold a creation or a revocation
//   firms                        firm → newest time of its oldest block, for trimming; +inf without one
//   firm:N:FIRM:users            user → as of when in µs, JSON: what is known of them
//   firm:N:FIRM:uses             key id → what its uses have told (see `uses`)
//   window:KEY                   uses: grant, first number, count → time of the last of them
//   grants:KEY                   open grants: moment, count, life; logical clock, number of uses in the window
//   mark:SPOOL                   last sequence taken      spools                all of those
//   importing                    checksum of the file whose import was begun and not completed
//
// Every key that a script writes is among its KEYS, or looked at before the first write: while a Cluster moves a slot,
// a key that has gone ahead must stop the script before it has done half of its work. What is published is only a hint,
// so a user who may not publish stops nothing.

use std::sync::LazyLock;

use uuid::Uuid;

use super::blocks::NUMBER_MAX;
use super::script::{INCARNATION, Script, guarded};
use crate::domain::{Field, FirmId, KeyDigest, KeyId, UserId};
use crate::store::Partition;

/// Which layout this version reads and writes.
pub(super) const SCHEMA: &str = "4";
/// Which stores this Redis holds: the stream that names each, its layout and its number of partitions.
pub(super) const STORES: &str = "assure:stores";

/// The names of one partition.
pub(super) struct Names {
    pub(super) partition: Partition,
    /// The stream for consumers.
    pub(super) stream: String,
    /// What every other name begins with.
    pub(super) prefix: String,
    /// Where every partition publishes its changes, to hasten the other replicas.
    pub(super) news: String,
}

impl Names {
    /// Of each partition, in order.
    pub(super) fn of_all(stream: &str, partitions: u16) -> Box<[Self]> {
        (0..partitions).map(|number| Self::of(stream, Partition(number))).collect()
    }

    fn of(stream: &str, partition: Partition) -> Self {
        let news = format!("assure:{{{stream}}}:news");
        let stream = if partition.0 == 0 { stream.to_owned() } else { format!("{stream}:{}", partition.0) };
        Self { partition, prefix: format!("assure:{{{stream}}}:"), stream, news }
    }

    pub(super) fn named(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(super) fn record(&self, digest: &KeyDigest) -> String {
        self.named(&format!("record:{}", digest.hex()))
    }

    pub(super) fn id(&self, key: KeyId) -> String {
        self.of_key("id", key)
    }

    pub(super) fn of_key(&self, what: &str, key: KeyId) -> String {
        self.named(&format!("{what}:{key}"))
    }

    pub(super) fn mark(&self, spool: Uuid) -> String {
        self.named(&format!("mark:{spool}"))
    }

    pub(super) fn of_firm(&self, firm: &FirmId, what: &str) -> String {
        self.named(&format!("firm:{}:{firm}:{what}", firm.as_str().len()))
    }

    pub(super) fn of_creator(&self, firm: &FirmId, creator: &UserId) -> String {
        self.of_firm(firm, &format!("creator:{}:{creator}:live", creator.as_str().len()))
    }

    pub(super) fn call(&self, firm: &FirmId, creator: &UserId, text: &str) -> String {
        self.named(&format!("call:{}:{firm}:{}:{creator}:{text}", firm.as_str().len(), creator.as_str().len()))
    }
}

/// What several scripts begin with: the store's time as a number of microseconds and as RFC 3339 (the calendar by
/// days since 0000-03-01, of which 146,097 make 400 years), and how a record enters the logs.
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
-- A clock of its own for each key, which goes on as the store's does and stands still where that goes back.
local function logical(latest, wall)
  if not latest then return tonumber(now) end
  return latest + math.max(0, tonumber(now) - (wall or latest))
end
local function of_firm(prefix, firm, what)
  return prefix .. 'firm:' .. #firm .. ':' .. firm .. ':' .. what
end
-- A block takes all that is left of a millisecond, so that no two lie between each other. Where the log is ahead of the
-- clock, because one came in the same millisecond or the clock was set back, the log goes on behind its own end.
local ends = {}
local function add_block(log, times, changes, newest, block, about)
  local ms = ends[log] and ends[log] + 1 or tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local function place() return string.format('%.0f-', ms) .. number_max end
  if type(redis.pcall('XADD', log, place(), 'records', block)) == 'table' then
    local told = redis.call('XINFO', 'STREAM', log)
    for at = 1, #told, 2 do
      if told[at] == 'last-generated-id' then ms = tonumber(string.match(told[at + 1], '^%d+')) + 1 end
    end
    redis.call('XADD', log, place(), 'records', block)
  end
  ends[log] = ms
  local member = place() .. ' ' .. about
  redis.call('ZADD', times, newest, member)
  if string.byte(about) == 33 then redis.call('ZADD', changes, newest, member) end
end
-- A record of what a script does itself, for the consumers and as `WrittenRecord` has it.
local function append(prefix, stream, firm, fields)
  redis.call('XADD', stream, '*', unpack(fields))
  local written, about = {}, '!'
  for at = 1, #fields, 2 do
    local name, value = fields[at], fields[at + 1]
    if name == 'key_id' then about = '!,' .. string.sub(value, -4) end
    if name == 'time' then value = now elseif name == 'event_id' then value = string.gsub(value, '-', '') end
    written[#written + 1] = letters[name] .. #value .. ':' .. value
  end
  local record = table.concat(written)
  local function name(what) return of_firm(prefix, firm, what) end
  add_block(name('log'), name('times'), name('changes'), now, '0:' .. #record .. ':' .. record, about)
  redis.call('ZADD', prefix .. 'firms', 'LT', now, firm)
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

pub(super) fn with_common(script: &str) -> Script {
    let letters: String = Field::ALL.iter().map(|field| format!("{} = '{}', ", field.name(), char::from(field.letter()))).collect();
    guarded(&format!("local letters, number_max = {{{letters}}}, '{NUMBER_MAX}'\n{COMMON}{script}"))
}

/// KEYS epoch, records. Answers the epoch and each record's fields, of one moment.
pub(super) static FIND: LazyLock<Script> = LazyLock::new(|| {
    guarded(
        r"
local records = {}
for at = 2, #KEYS do
  local fields = redis.pcall('HGETALL', KEYS[at])
  -- What is no record is that key's trouble alone.
  records[at - 1] = fields.err and {'broken'} or fields
end
return {redis.call('GET', KEYS[1]) or '0', records}
",
    )
});

/// KEYS epoch, sessions, revoked, untold, store, schema, settled. ARGV replica, incarnation, applied, lease in ms, fresh
/// token, the data set that is known or nothing, the run that is trusted or nothing. Answers `layout` or `other` and what was found, having changed nothing; else
/// `flush` or `revoked`, the epoch, the data set, the run, the time in µs, `settled` or nothing, and the digests revoked since `applied`.
/// Who says it has applied more than there is has seen another store, and has applied nothing of this one.
pub(super) static RENEW: LazyLock<Script> = LazyLock::new(|| {
    let layout = format!("local layout = '{SCHEMA}'\n{INCARNATION}");
    Script::new(&format!(
        "{layout}{}",
        r"
local found = redis.call('MGET', KEYS[5], KEYS[6])
if ARGV[6] ~= '' and found[1] ~= ARGV[6] then return {'other', found[1] or ''} end
if found[2] and found[2] ~= layout then return {'layout', found[2]} end
if ARGV[6] ~= '' and not found[2] then return {'layout', ''} end
local epoch = redis.call('GET', KEYS[1]) or '0'
-- In what begins with this call nobody can have forgotten anything.
local is_new = redis.call('SET', KEYS[5], ARGV[5], 'NX')
redis.call('SET', KEYS[6], layout, 'NX')
local foreign = tonumber(ARGV[3]) > tonumber(epoch)
local session = ARGV[1] .. ' ' .. ARGV[2]
local known = redis.call('HGET', KEYS[2], session)
local renewals = known and tonumber(string.match(known, '^%d+ (%d+)')) or 0
local applied = foreign and '0' or ARGV[3]
redis.call('HSET', KEYS[2], session, applied .. ' ' .. string.format('%.0f', renewals + 1) .. ' ' .. ARGV[4])
local run = incarnation()
local settled = redis.call('GET', KEYS[7])
if foreign then
  redis.call('DEL', KEYS[7])
  settled = false
elseif (is_new or ARGV[7] == run) and settled ~= run then
  redis.call('SET', KEYS[7], run)
  settled = run
end
local time = redis.call('TIME')
local answer = {'revoked', epoch, redis.call('GET', KEYS[5]), run, time[1] .. string.format('%06d', tonumber(time[2])),
  settled == run and 'settled' or ''}
if foreign or tonumber(applied) < tonumber(redis.call('GET', KEYS[4]) or '0') then
  answer[1] = 'flush'
  return answer
end
local first = string.format('%.0f', tonumber(applied) + 1)
for _, entry in ipairs(redis.call('XRANGE', KEYS[3], first .. '-0', '+')) do
  answer[#answer + 1] = entry[2][2]
end
return answer
",
    ))
});

/// KEYS epoch, store. Answers the epoch, the data set and the run.
pub(super) static EPOCH: LazyLock<Script> = LazyLock::new(|| {
    guarded(
        r"
local run = incarnation()
return {redis.call('GET', KEYS[1]) or '0', redis.call('GET', KEYS[2]) or '', run}
",
    )
});

/// KEYS sessions, store. Answers the data set, the run, and each session with what it last said.
pub(super) static SESSIONS: LazyLock<Script> = LazyLock::new(|| {
    guarded(
        r"
local run = incarnation()
local answer = redis.call('HGETALL', KEYS[1])
table.insert(answer, 1, run)
table.insert(answer, 1, redis.call('GET', KEYS[2]) or '')
return answer
",
    )
});

/// KEYS sessions. ARGV pairs of a session and what it last said. Forgets those that have said nothing since.
pub(super) static FORGET: LazyLock<Script> = LazyLock::new(|| {
    guarded(
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

/// KEYS epoch, record, id, firm's live, creator's live, firm's keys, call (or the id again), stream, log, times, firms, changes.
/// ARGV prefix, digest, key id, firm, firm's most, creator's most, news, `call` or nothing, number of the record's
/// fields, those, the audit fields. Answers a word and what belongs to it (protocol 4).
pub(super) static CREATE: LazyLock<Script> = LazyLock::new(|| {
    with_common(
        r"
local prefix, has_call = ARGV[1], ARGV[8] == 'call'
local earlier = redis.call('GET', KEYS[3]) or (has_call and redis.call('GET', KEYS[7]))
if earlier then
  local fields = redis.call('HGETALL', prefix .. 'record:' .. earlier)
  table.insert(fields, 1, 'replayed')
  return fields
end
if redis.call('EXISTS', KEYS[2]) == 1 then return {'taken'} end
if redis.call('SCARD', KEYS[4]) >= tonumber(ARGV[5]) then return {'firm_full'} end
if redis.call('SCARD', KEYS[5]) >= tonumber(ARGV[6]) then return {'creator_full'} end
local count = tonumber(ARGV[9])
local record = {}
for at = 10, 9 + count do record[#record + 1] = ARGV[at] end
redis.call('HSET', KEYS[2], 'created_at', now, unpack(record))
redis.call('SET', KEYS[3], ARGV[2])
redis.call('SADD', KEYS[4], ARGV[3])
redis.call('SADD', KEYS[5], ARGV[3])
redis.call('ZADD', KEYS[6], now, ARGV[3])
if has_call then redis.call('SET', KEYS[7], ARGV[2], 'EX', 86400) end
append(prefix, KEYS[8], ARGV[4], fields_from(10 + count, {time = rfc3339()}))
local epoch = string.format('%.0f', redis.call('INCR', KEYS[1]))
redis.pcall('PUBLISH', ARGV[7], epoch)
return {'created', epoch, now}
",
    )
});

/// Entries of the stream of revocations; whoever has missed more forgets its whole cache.
const REVOKED_KEPT: usize = 10_000;

/// How a record that is live becomes a revoked one, with all that belongs to it; answers the epoch.
/// KEYS epoch, revoked, untold, stream; `known` is the record's firm, creator, id, name and prefix.
const REVOKING: &str = r"
local function revoke(prefix, digest, known, by, reason, news, fields)
  local firm, creator, id = known[1], known[2], known[3]
  local record, live = prefix .. 'record:' .. digest, of_firm(prefix, firm, 'live')
  local of_creator = of_firm(prefix, firm, 'creator:' .. #creator .. ':' .. creator .. ':live')
  redis.call('EXISTS', record, live, of_creator, of_firm(prefix, firm, 'log'), of_firm(prefix, firm, 'times'), of_firm(prefix, firm, 'changes'), prefix .. 'firms')
  redis.call('HSET', record, 'revoked_at', now, 'revoked_by', by, 'revoked_reason', reason)
  redis.call('SREM', live, id)
  redis.call('SREM', of_creator, id)
  local epoch = string.format('%.0f', redis.call('INCR', KEYS[1]))
  redis.call('XADD', KEYS[2], epoch .. '-0', 'digest', digest)
  if redis.call('XLEN', KEYS[2]) > kept then
    local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1][1]
    redis.call('SET', KEYS[3], (string.match(oldest, '^%d+')))
    redis.call('XDEL', KEYS[2], oldest)
  end
  append(prefix, KEYS[4], firm, fields)
  redis.pcall('PUBLISH', news, epoch)
  return epoch
end
local function about(known, replaced)
  replaced.time, replaced.firm_id, replaced.key_id = rfc3339(), known[1], known[3]
  replaced.key_name, replaced.key_prefix = known[4], known[5]
  return replaced
end
local function known_of(prefix, digest)
  return redis.call('HMGET', prefix .. 'record:' .. digest, 'firm_id', 'creator', 'id', 'name', 'prefix', 'revoked_at')
end
";

fn revoking(script: &str) -> Script {
    with_common(&format!("local kept = {REVOKED_KEPT}\n{REVOKING}{script}"))
}

/// KEYS epoch, revoked, untold, stream. ARGV prefix, key id, firm, by, reason, news, the audit fields. Answers
/// `none`, or `first` or `again`, the epoch and the record.
pub(super) static REVOKE: LazyLock<Script> = LazyLock::new(|| {
    revoking(
        r"
local prefix = ARGV[1]
local digest = redis.call('GET', prefix .. 'id:' .. ARGV[2])
if not digest then return {'none'} end
local known = known_of(prefix, digest)
if not known[1] or known[1] ~= ARGV[3] then return {'none'} end
local word, epoch = 'again', nil
if known[6] then
  epoch = redis.call('GET', KEYS[1]) or '0'
  -- Written as it is, so that what is waited for after this call includes a revocation whose own wait failed.
  redis.call('HSET', prefix .. 'record:' .. digest, 'revoked_at', known[6])
else
  word, epoch = 'first', revoke(prefix, digest, known, ARGV[4], ARGV[5], ARGV[6], fields_from(7, about(known, {})))
end
local fields = redis.call('HGETALL', prefix .. 'record:' .. digest)
table.insert(fields, 1, epoch)
table.insert(fields, 1, word)
return fields
",
    )
});

/// KEYS epoch, revoked, untold, stream. ARGV prefix, by, reason, news, number of digests, those with an event id each,
/// the audit fields. Revokes those that are live here, and only looks at the others; answers how many it revoked.
pub(super) static REASSERT: LazyLock<Script> = LazyLock::new(|| {
    revoking(
        r"
local prefix, count, forgotten = ARGV[1], tonumber(ARGV[5]), 0
for at = 6, 5 + 2 * count, 2 do
  local known = known_of(prefix, ARGV[at])
  if known[1] and not known[6] then
    local fields = fields_from(6 + 2 * count, about(known, {event_id = ARGV[at + 1]}))
    revoke(prefix, ARGV[at], known, ARGV[2], ARGV[3], ARGV[4], fields)
    forgotten = forgotten + 1
  end
end
return forgotten
",
    )
});

/// KEYS firm's keys, firm's uses. ARGV prefix, `firm` for all of its keys or `key` and an id. Answers, for each, the
/// record's fields and what its uses have told.
pub(super) static VIEWS: LazyLock<Script> = LazyLock::new(|| {
    guarded(
        r"
local prefix, ids = ARGV[1], {}
if ARGV[2] == 'firm' then ids = redis.call('ZRANGE', KEYS[1], 0, -1) else ids[1] = ARGV[3] end
local views = {}
for at, id in ipairs(ids) do
  local digest = redis.call('GET', prefix .. 'id:' .. id)
  if digest then
    local uses = redis.call('HGET', KEYS[2], id)
    views[#views + 1] = {redis.call('HGETALL', prefix .. 'record:' .. digest), uses and {cmsgpack.unpack(uses)} or {}}
  end
end
return views
",
    )
});

/// KEYS a firm's users. ARGV user, as of when in µs, what is known. What is older than what is there changes nothing.
pub(super) static NOTE_USER: LazyLock<Script> = LazyLock::new(|| {
    guarded(
        r"
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known and tonumber(string.match(known, '^%d+')) > tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. ARGV[3])
return 1
",
    )
});

/// KEYS a firm's users. Answers them as they were noted.
pub(super) static USERS: LazyLock<Script> = LazyLock::new(|| guarded("return redis.call('HVALS', KEYS[1])"));

#[cfg(test)]
mod tests {
    use super::super::partition_of;
    use super::*;
    use crate::domain::FirmTag;

    #[test]
    fn names_of_firms_and_creators_cannot_be_confused() {
        let names = Names::of("s", Partition(0));
        let firm = |text| FirmId::parse(text).unwrap();
        let user = |text| UserId::parse(text).unwrap();
        assert_ne!(names.of_creator(&firm("a"), &user("b:c")), names.of_creator(&firm("a:b"), &user("c")));
        assert_ne!(names.of_firm(&firm("a:1"), "live"), names.of_firm(&firm("a"), "1:live"));
    }

    #[test]
    fn all_names_of_a_partition_lie_in_one_slot() {
        for names in Names::of_all("assure:audit", 5) {
            let slot = redis::cluster_routing::Slot::for_key(&names.stream);
            let key = KeyId::new(Uuid::from_u128(7));
            let firm = FirmId::parse("a{b}c").unwrap();
            for name in [names.named("epoch"), names.id(key), names.mark(Uuid::nil()), names.of_firm(&firm, "live")] {
                assert_eq!(redis::cluster_routing::Slot::for_key(&name), slot, "{name}");
            }
        }
        assert_eq!(Names::of("s", Partition(0)).stream, "s", "one partition has the stream as it is configured");
        assert_eq!(Names::of("s", Partition(3)).stream, "s:3");
    }

    #[test]
    fn firms_are_spread_and_stay_where_they_are() {
        let tag = |number: usize| FirmTag::of(&FirmId::parse(&format!("firm-{number}")).unwrap());
        let mut spread = [0; 3];
        (0..600).for_each(|number| spread[partition_of(tag(number), 3)] += 1);
        assert!(spread.iter().all(|firms| (150..250).contains(firms)), "{spread:?}");
        assert_eq!((0..8).map(|number| partition_of(tag(number), 3)).collect::<Vec<_>>(), [0, 1, 1, 2, 1, 1, 0, 1], "part of the layout");
        assert!((0..99).all(|number| partition_of(tag(number), 1) == 0));
    }
}

//! What a key's uses have told, as one field of its firm's hash.
//!
//! ```text
//! moment of the last use · its User-Agent · its address · hours · tools · networks        six MessagePack strings
//! hours      lines `HOUR COUNT`, the latest first, a day's at most
//! tools      lines `MOMENT NAME`, what was seen last first, eight at most; networks likewise
//! ```
//!
//! Nearly every record tells of a use, so keys lie together and a shipment reads and writes all of a firm's in two commands;
//! a command for each costs Redis a microsecond or two. A name holds no line break: it is a piece of a header field.

use super::corrupt;
use super::keys::{number, time};
use crate::domain::Timestamp;
use crate::store::uses::{HOURS_KEPT, HourOfUse, KeyUses, SEEN_MAX, Seen};
use crate::store::{LastUse, StoreError};

/// Lua's `note_uses(uses, ids, notes)`: adds what a shipment tells of keys, packed as above, to what is there.
pub(super) const NOTING: &str = r"
local function number_text(number) return string.format('%.0f', number) end
local function lines_of(text)
  local all = {}
  for number, word in string.gmatch(text, '(%-?%d+) ([^\n]*)\n') do all[#all + 1] = {tonumber(number), word} end
  return all
end
local function spelt(all, most)
  table.sort(all, function(one, other) return one[1] > other[1] end)
  local out = {}
  for at = 1, math.min(#all, most) do out[at] = number_text(all[at][1]) .. ' ' .. all[at][2] .. '\n' end
  return table.concat(out)
end
-- The latest moment of each name. Usually there is one, and it is the same: moments have sixteen digits until 2286.
local function seen(old, new)
  if string.byte(old, 17) == 32 and string.byte(new, 17) == 32 and string.sub(old, 17) == string.sub(new, 17) then
    return old > new and old or new
  end
  local all, places = lines_of(old), {}
  for place, line in ipairs(all) do places[line[2]] = place end
  for _, line in ipairs(lines_of(new)) do
    local place = places[line[2]]
    if place then all[place][1] = math.max(all[place][1], line[1]) else all[#all + 1] = line end
  end
  return spelt(all, seen_max)
end
-- The sum of each hour; usually it is the latest.
local function counted(old, new)
  local hour, before, rest = string.match(old, '^(%d+) (%d+)\n(.*)$')
  local same, count, more = string.match(new, '^(%d+) (%d+)\n(.*)$')
  if hour and hour == same and more == '' then return hour .. ' ' .. number_text(before + count) .. '\n' .. rest end
  local all, places, newest, kept = lines_of(old), {}, 0, {}
  for place, line in ipairs(all) do places[line[1]] = place end
  for _, line in ipairs(lines_of(new)) do
    local place = places[line[1]]
    if place then all[place][2] = number_text(all[place][2] + line[2]) else all[#all + 1] = line end
  end
  for _, line in ipairs(all) do newest = math.max(newest, line[1]) end
  for _, line in ipairs(all) do if line[1] + hours_kept > newest then kept[#kept + 1] = line end end
  return spelt(kept, hours_kept)
end
local function note_uses(uses, ids, notes)
  local before, pairs = redis.call('HMGET', uses, unpack(ids)), {}
  for place, id in ipairs(ids) do
    local note = notes[place]
    if before[place] then
      local at, agent, address, hours, tools, networks = cmsgpack.unpack(note)
      local old_at, old_agent, old_address, old_hours, old_tools, old_networks = cmsgpack.unpack(before[place])
      if (tonumber(old_at) or 0) > tonumber(at) then at, agent, address = old_at, old_agent, old_address end
      hours, tools, networks = counted(old_hours, hours), seen(old_tools, tools), seen(old_networks, networks)
      note = cmsgpack.pack(at, agent, address, hours, tools, networks)
    end
    pairs[2 * place - 1], pairs[2 * place] = id, note
  end
  redis.call('HSET', uses, unpack(pairs))
end
";

/// The bounds that the script goes by.
pub(super) fn bounds() -> String {
    format!("local seen_max, hours_kept = {SEEN_MAX}, {HOURS_KEPT}\n")
}

/// Packs what is known, in any order; a last use that is none has no moment.
pub(super) fn pack(
    (at, user_agent, client_ip): (Option<i64>, &str, &str),
    hours: &[HourOfUse],
    tools: Vec<(i64, String)>,
    networks: Vec<(i64, String)>,
) -> Vec<u8> {
    let mut packed = Vec::with_capacity(256);
    put(&mut packed, at.map_or_else(String::new, |at| at.to_string()).as_bytes());
    put(&mut packed, user_agent.as_bytes());
    put(&mut packed, client_ip.as_bytes());
    let hours = hours.iter().map(|counted| (counted.hour, counted.count.to_string())).collect();
    for lines in [lines(hours, HOURS_KEPT), lines(tools, SEEN_MAX), lines(networks, SEEN_MAX)] {
        put(&mut packed, lines.as_bytes());
    }
    packed
}

/// The same of what was moved; nothing where it was never used.
pub(super) fn pack_moved(uses: &KeyUses) -> Option<Vec<u8>> {
    let text = |text: &'_ Option<String>| text.clone().unwrap_or_default();
    let last = uses.last.as_ref()?;
    let seen = |seen: &[Seen]| seen.iter().map(|seen| (seen.at.micros(), seen.what.clone())).collect();
    let used = (Some(last.at.micros()), &*text(&last.user_agent), &*text(&last.client_ip));
    Some(pack(used, &uses.hours, seen(&uses.tools), seen(&uses.networks)))
}

fn lines<N: Ord + Copy + std::fmt::Display>(mut all: Vec<(N, String)>, most: usize) -> String {
    all.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    all.iter().take(most).map(|(number, word)| format!("{number} {word}\n")).collect()
}

/// Reads the six texts, or none of them.
pub(super) fn read(parts: &[String]) -> Result<KeyUses, StoreError> {
    let [at, user_agent, client_ip, hours, tools, networks] = parts else {
        return if parts.is_empty() {
            Ok(KeyUses::default())
        } else {
            Err(corrupt("what a key was used with has a part too many or too few"))
        };
    };
    let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let last = match text(at) {
        None => None,
        Some(at) => Some(LastUse { at: time(&at)?, user_agent: text(user_agent), client_ip: text(client_ip) }),
    };
    let mut hours = lines_of(hours, |hour, count| Ok(HourOfUse { hour: number(hour)?, count: number(count)? }))?;
    hours.reverse();
    let seen = |lines| lines_of(lines, |at, what| Ok(Seen { what: what.to_owned(), at: time(at)? }));
    Ok(KeyUses { last, tools: seen(tools)?, networks: seen(networks)?, hours })
}

fn lines_of<T>(text: &str, read: impl Fn(&str, &str) -> Result<T, StoreError>) -> Result<Vec<T>, StoreError> {
    let lines = text.lines().map(|line| {
        let (number, word) = line.split_once(' ').ok_or_else(|| corrupt("what a key was used with has no number"))?;
        read(number, word)
    });
    lines.collect()
}

/// What was seen since a moment, in words.
pub(super) fn since(seen: Vec<Seen>, moment: Timestamp) -> impl Iterator<Item = String> {
    seen.into_iter().filter(move |seen| seen.at >= moment).map(|seen| seen.what)
}

/// Appends a text as MessagePack's `fixstr`, `str 16` or `str 32`.
pub(super) fn put(packed: &mut Vec<u8>, text: &[u8]) {
    match (u8::try_from(text.len()), u16::try_from(text.len())) {
        (Ok(length @ ..32), _) => packed.push(0xa0 | length),
        (_, Ok(length)) => {
            packed.push(0xda);
            packed.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            packed.push(0xdb);
            packed.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
        }
    }
    packed.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::redis::schema::with_common;

    fn key_uses(at: i64, hours: &[(u64, u64)], tools: &[(i64, &str)]) -> KeyUses {
        let seen = |all: &[(i64, &str)]| {
            all.iter().map(|(at, what)| Seen { what: (*what).to_owned(), at: Timestamp::from_micros(*at) }).collect::<Vec<_>>()
        };
        KeyUses {
            last: Some(LastUse { at: Timestamp::from_micros(at), user_agent: Some(format!("curl/{at}")), client_ip: None }),
            tools: seen(tools),
            networks: seen(&[(at, "10.0.0.0/24")]),
            hours: hours.iter().map(|(hour, count)| HourOfUse { hour: *hour, count: *count }).collect(),
        }
    }

    async fn noted(notes: &[KeyUses]) -> KeyUses {
        let server = crate::store::redis::testing::Server::start();
        let store = server.open().await.unwrap();
        let script = with_common(&format!(
            "{}{NOTING} note_uses(KEYS[1], {{'other', 'key'}}, {{ARGV[1], ARGV[1]}}) return {{cmsgpack.unpack(redis.call('HGET', KEYS[1], 'key'))}}",
            bounds()
        ));
        let mut answer = Vec::new();
        for note in notes {
            let packed = [pack_moved(note).unwrap()];
            answer = store.connections.bulk().call::<Vec<String>>(&script, &["assure:{assure:audit}:x".to_owned()], &packed).await.unwrap();
        }
        read(&answer).unwrap()
    }

    #[tokio::test]
    async fn the_script_adds_notes_up_as_they_come_early_or_late() {
        const AT: i64 = 1_795_458_600_000_000;
        let first = key_uses(AT, &[(100, 2)], &[(AT, "curl")]);
        assert_eq!(noted(std::slice::from_ref(&first)).await, first, "a first note is kept as it is");
        let again = key_uses(AT + 7, &[(100, 3)], &[(AT + 7, "curl")]);
        let sum = key_uses(AT + 7, &[(100, 5)], &[(AT + 7, "curl")]);
        assert_eq!(noted(&[first.clone(), again.clone()]).await, sum);
        assert_eq!(noted(&[again, first.clone()]).await, sum, "in any order");
        let later = key_uses(AT + 9, &[(100, 1), (101, 4)], &[(AT + 9, "zapier"), (AT + 8, "curl")]);
        assert_eq!(
            noted(&[first.clone(), later]).await,
            key_uses(AT + 9, &[(100, 3), (101, 4)], &[(AT + 9, "zapier"), (AT + 8, "curl")]),
            "another hour and another tool"
        );
        let next_day = key_uses(AT + 9, &[(124, 4)], &[(AT - 1, "curl")]);
        assert_eq!(
            noted(&[first.clone(), next_day]).await,
            key_uses(AT + 9, &[(124, 4)], &[(AT, "curl")]),
            "an hour a day ago is forgotten"
        );
        let names: Vec<String> = (0..12).map(|number| format!("tool-{number}")).collect();
        let notes: Vec<KeyUses> =
            names.iter().zip(AT..).map(|(name, at)| key_uses(at, &[(100, 1)], &[(at, name)])).chain([first]).collect();
        let tools = noted(&notes).await.tools;
        assert_eq!(tools.iter().map(|seen| seen.what.as_str()).collect::<Vec<_>>(), names.iter().rev().take(8).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_no_list_is_refused() {
        assert_eq!(read(&[]).unwrap(), KeyUses::default());
        let parts = |hours: &str| ["7", "", "", hours, "", ""].map(str::to_owned);
        assert!(read(&parts("100 2\n")).is_ok());
        for broken in ["100", "x 2\n", "100 x\n"] {
            assert!(read(&parts(broken)).is_err(), "{broken}");
        }
        assert!(read(&parts("")[1..]).is_err());
    }
}

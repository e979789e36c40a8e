//! Where a page of the activity log ended: opaque to callers, checked when it comes back.
//!
//! ```text
//!   base64url of   1 | time, 8 bytes | event id, 16 bytes | check, 8 bytes
//!                  │                                         └ of a SHA-256 over the rest, the firm and the filters
//!                  └ version
//! ```
//!
//! The check catches a cursor that was altered, or used with another firm's token or other filters: 400. It is no
//! secret and need not be one: a cursor only says where to go on in a log that is the caller's own anyway.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::domain::Timestamp;
use crate::store::{ActivityPlace, ActivityQuery};

const VERSION: u8 = 1;
const PLACE_BYTES: usize = 25;
const CHECK_BYTES: usize = 8;
/// Longest text that is decoded: what `write` makes has 44 characters.
const CURSOR_CHARS_MAX: usize = 64;

/// Writes the place after which the next page of `query` begins.
pub(super) fn write(place: ActivityPlace, query: &ActivityQuery) -> String {
    let mut bytes = Vec::with_capacity(PLACE_BYTES + CHECK_BYTES);
    bytes.push(VERSION);
    bytes.extend(place.time.micros().to_be_bytes());
    bytes.extend(place.event.as_bytes());
    let check = check(&bytes, query);
    bytes.extend(check);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads a place back; `None` for anything that `write` did not make for the same firm and filters.
pub(super) fn read(cursor: &str, query: &ActivityQuery) -> Option<ActivityPlace> {
    if cursor.len() > CURSOR_CHARS_MAX {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
    let (place, given) = bytes.split_at_checked(PLACE_BYTES)?;
    if given != check(place, query) {
        return None;
    }
    let (version, rest) = place.split_first()?;
    let (time, event) = rest.split_first_chunk::<8>()?;
    let event = Uuid::from_slice(event).ok()?;
    (*version == VERSION).then_some(ActivityPlace { time: Timestamp::from_micros(i64::from_be_bytes(*time)), event })
}

fn check(place: &[u8], query: &ActivityQuery) -> [u8; CHECK_BYTES] {
    let text = |value: Option<String>| value.unwrap_or_default();
    let filters = [
        query.firm.to_string(),
        text(query.key.map(|key| key.to_string())),
        text(query.action.map(|action| action.to_string())),
        text(query.since.map(|since| since.to_string())),
        text(query.until.map(|until| until.to_string())),
    ];
    let mut hash = Sha256::new_with_prefix("assure-gateway activity cursor");
    hash.update(place);
    for filter in filters {
        hash.update(filter.len().to_be_bytes());
        hash.update(filter);
    }
    hash.finalize().first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Action, FirmId, KeyId};
    use crate::store::ActivityOrder;

    fn query(firm: &str) -> ActivityQuery {
        ActivityQuery {
            firm: FirmId::parse(firm).expect("a good id"),
            key: None,
            action: None,
            since: None,
            until: None,
            limit: 100,
            order: ActivityOrder::NewestFirst { after: None },
        }
    }

    const PLACE: ActivityPlace = ActivityPlace { time: Timestamp::from_micros(1_795_458_600_000_000), event: Uuid::from_u128(7) };

    #[test]
    fn a_cursor_comes_back_as_it_went() {
        let cursor = write(PLACE, &query("firm-1"));
        assert_eq!(read(&cursor, &query("firm-1")), Some(PLACE));
        assert_eq!(read(&cursor, &ActivityQuery { limit: 5, ..query("firm-1") }), Some(PLACE), "the page may change its size");
    }

    #[test]
    fn a_cursor_of_another_firm_or_question_is_refused() {
        let cursor = write(PLACE, &query("firm-1"));
        let mine = || query("firm-1");
        for other in [
            query("firm-2"),
            ActivityQuery { key: Some(KeyId::new(Uuid::from_u128(1))), ..mine() },
            ActivityQuery { action: Some(Action::Use), ..mine() },
            ActivityQuery { since: Some(PLACE.time), ..mine() },
            ActivityQuery { until: Some(PLACE.time), ..mine() },
        ] {
            assert_eq!(read(&cursor, &other), None, "{other:?}");
        }
    }

    #[test]
    fn every_altered_character_is_noticed() {
        let cursor = write(PLACE, &query("firm-1"));
        for place in 0..cursor.len() {
            for replacement in ["A", "B", "z", "_", "=", " "] {
                let mut altered = cursor.clone();
                altered.replace_range(place..=place, replacement);
                assert_eq!(read(&altered, &query("firm-1")).is_some(), altered == cursor, "{altered}");
            }
        }
        for text in ["", "x", &cursor[1..], &format!("{cursor}A"), &"A".repeat(10_000)] {
            assert_eq!(read(text, &query("firm-1")), None, "{text}");
        }
    }
}

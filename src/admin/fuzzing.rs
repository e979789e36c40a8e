//! Fuzzing of the activity log's cursor.

use super::cursor::{read, write};
use crate::domain::FirmId;
use crate::store::{ActivityOrder, ActivityQuery};

fn query(firm: &str) -> ActivityQuery {
    let firm = FirmId::parse(firm).expect("a good id");
    ActivityQuery { firm, key: None, action: None, since: None, until: None, limit: 100, order: ActivityOrder::NewestFirst { after: None } }
}

/// What is read as a cursor is, to the byte, what would be written for the same place, and nothing to another firm.
pub fn cursor(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let Some(place) = read(text, &query("firm-1")) else { return };
    assert_eq!(write(place, &query("firm-1")), text, "two texts for one place");
    assert!(read(text, &query("firm-2")).is_none(), "a cursor works for two firms");
}

//! Under which layout, and spread over how many partitions, a store was begun: it cannot be read otherwise.
//!
//! Each store is named by its audit stream, so that one Redis may hold several. Whoever starts first says how it is laid
//! out; whoever starts with another number of partitions would look for firms where they are not, and is refused.

use super::connection::Connections;
use super::schema::{SCHEMA, STORES};
use crate::store::StoreError;

pub(super) async fn check(connections: &Connections, stream: &str, partitions: u16) -> Result<(), StoreError> {
    let ours = format!("{SCHEMA} {partitions}");
    let line = connections.bulk();
    let is_first = line.send::<u8>(redis::cmd("HSETNX").arg(STORES).arg(stream).arg(&ours)).await? == 1;
    let found: String = line.send(redis::cmd("HGET").arg(STORES).arg(stream)).await?;
    if is_first {
        let all: Vec<String> = line.send(redis::cmd("HKEYS").arg(STORES)).await?;
        let others: Vec<&String> = all.iter().filter(|other| *other != stream).collect();
        if !others.is_empty() {
            tracing::warn!(%stream, ?others, "began an empty store; this Redis holds others, which gateways with another audit.stream use");
        }
    }
    judge(&found, partitions)
}

fn judge(found: &str, partitions: u16) -> Result<(), StoreError> {
    let Some((layout, count)) = found.split_once(' ') else {
        return Err(StoreError::Corrupt(format!("{STORES} says {found:?}, which is no layout")));
    };
    if layout != SCHEMA {
        let why = format!(
            "this store has layout {layout:?}, and this version reads {SCHEMA:?}; move it with the version that wrote it: assure-gateway store export, then store import here"
        );
        return Err(StoreError::Unsafe(why));
    }
    if count != partitions.to_string() {
        let why = format!(
            "store.redis.partitions is {partitions}, but this store was begun with {count:?}; write that number, or stop all gateways and move it: assure-gateway store export, then store import into an empty Redis with the new number"
        );
        return Err(StoreError::Unsafe(why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_layout_or_number_of_partitions_is_refused_with_both_and_the_way_out() {
        assert!(judge(&format!("{SCHEMA} 3"), 3).is_ok());
        let refused = |found: &str| judge(found, 3).err().map(|error| error.to_string()).unwrap_or_default();
        for (found, parts) in [
            (format!("{SCHEMA} 2"), ["partitions is 3", "begun with \"2\"", "store export"]),
            ("9 3".into(), ["\"9\"", SCHEMA, "store import"]),
        ] {
            assert!(parts.iter().all(|part| refused(&found).contains(part)), "{}", refused(&found));
        }
        assert!(refused("garbage").contains("no layout"));
    }
}

//! Which data set each partition must be, as the last renewal found it.
//!
//! Every call of a script carries it, and the script looks before it does anything: a Redis that was emptied, or another
//! one at the same address, never answers that a key is unknown, and a layout that another version changed is never
//! written on.

use std::collections::HashMap;

use parking_lot::RwLock;

/// What is known of each partition, by what the names of its keys begin with.
#[derive(Default)]
pub(super) struct Identity {
    known: RwLock<HashMap<String, String>>,
}

impl Identity {
    /// Notes which data set the partition of `key` is.
    pub(super) fn learn(&self, key: &str, data_set: &str) {
        let home = home(key);
        if self.known.read().get(home).is_none_or(|known| known != data_set) {
            self.known.write().insert(home.to_owned(), data_set.to_owned());
        }
    }

    /// The data set that a script on these keys must find; empty before one is known. All lie in one partition.
    pub(super) fn of(&self, keys: &[String]) -> String {
        keys.first().and_then(|key| self.known.read().get(home(key)).cloned()).unwrap_or_default()
    }
}

/// The beginning that all names of a partition share, its hash tag included.
fn home(key: &str) -> &str {
    key.split_once('}').map_or(key, |(home, _)| home)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_partition_has_its_own() {
        let identity = Identity::default();
        let of = |key: &str| identity.of(&[key.to_owned()]);
        identity.learn("assure:{p0}:store", "one");
        identity.learn("assure:{p1}:store", "two");
        assert_eq!(of("assure:{p0}:window:1"), "one");
        assert_eq!(of("assure:{p1}:firm:1:}:log"), "two");
        assert_eq!(of("assure:{p2}:store"), "");
    }
}

//! Digests that were refused, a bounded number of them: a stranger's flood turns over in here and nowhere else.
//!
//! Each digest has one place, which holds the last one that fell on it. Noting a refusal is then a lock and a copy, with
//! nothing to evict, and what a flood pushes out costs its owner one look-up. The hash is seeded, so nobody can aim at another's place.

use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::cache::CachedKey;
use crate::domain::KeyDigest;
use crate::store::{Epoch, Partition};

/// Half a MiB.
const PLACES: usize = 8_192;

/// Why a digest is refused without asking the store.
#[derive(Clone, Debug)]
pub(super) enum Refused {
    /// Nobody had such a key at that epoch of that generation; a later creation makes this worthless.
    Unknown(Partition, Epoch, u64),
    /// The key was revoked, which is final.
    Revoked(Arc<CachedKey>),
}

/// Holds the last digest that fell on it.
type Place = Mutex<Option<(KeyDigest, Refused)>>;

/// The places.
#[derive(Debug)]
pub(super) struct RefusedKeys {
    places: Box<[Place]>,
    hasher: RandomState,
}

impl RefusedKeys {
    pub(super) fn new() -> Self {
        Self { places: (0..PLACES).map(|_| Mutex::default()).collect(), hasher: RandomState::default() }
    }

    /// Why a digest was refused last, if that is still known.
    pub(super) fn get(&self, digest: &KeyDigest) -> Option<Refused> {
        let place = self.place(digest).lock();
        place.as_ref().filter(|(held, _)| held == digest).map(|(_, refused)| refused.clone())
    }

    pub(super) fn note(&self, digest: KeyDigest, refused: Refused) {
        *self.place(&digest).lock() = Some((digest, refused));
    }

    fn place(&self, digest: &KeyDigest) -> &Place {
        let number = usize::try_from(self.hasher.hash_one(digest) % PLACES as u64);
        number.ok().and_then(|number| self.places.get(number)).expect("a remainder of the number of places is a place")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u64) -> KeyDigest {
        let mut bytes = [0; 32];
        bytes.iter_mut().zip(number.to_be_bytes()).for_each(|(to, from)| *to = from);
        KeyDigest::from_bytes(bytes)
    }

    fn unknown_at(refused: &RefusedKeys, digest: &KeyDigest) -> Option<Epoch> {
        match refused.get(digest) {
            Some(Refused::Unknown(_, epoch, _)) => Some(epoch),
            _ => None,
        }
    }

    #[test]
    fn the_last_that_fell_on_a_place_is_known_and_never_taken_for_another() {
        let refused = RefusedKeys::new();
        let all = 4 * PLACES as u64;
        for number in 0..all {
            refused.note(digest(number), Refused::Unknown(Partition::default(), Epoch(number), 0));
            assert_eq!(unknown_at(&refused, &digest(number)), Some(Epoch(number)));
        }
        let known: Vec<u64> = (0..all).filter(|number| unknown_at(&refused, &digest(*number)).is_some()).collect();
        assert!(known.iter().all(|number| unknown_at(&refused, &digest(*number)) == Some(Epoch(*number))));
        assert!((PLACES / 2..=PLACES).contains(&known.len()), "{} of {PLACES} places are in use", known.len());
    }
}

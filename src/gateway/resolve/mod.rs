//! Step 2: from a digest to what is known about the key, mostly without asking the store.
//!
//! `cache` keeps live keys, and `refused`, apart from them, so that garbage cannot evict good keys, the digests that were
//! refused. `keyring` fills both with one look-up however many requests wait (`single_flight`), and checks what they hold
//! against `crate::coherence` before it is used. `running` looks at keys of requests that go on, when that must be.

mod cache;
mod keyring;
mod refused;
mod running;
mod single_flight;

pub use cache::CachedKey;
pub use keyring::{Keyring, Resolved, Standing, store_failed};
pub use running::Ended;

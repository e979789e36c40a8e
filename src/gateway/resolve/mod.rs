//! Step 2: from a digest to what is known about the key, mostly without asking the store.
//!
//! `cache` keeps live keys, and apart from them, so that garbage cannot evict good keys, the digests that were
//! refused. `keyring` fills it with one look-up however many requests wait, and checks what it holds against
//! `crate::coherence` before it is used. `running` looks at keys of requests that go on, when that must be.

mod cache;
mod keyring;
mod running;

pub use cache::CachedKey;
pub use keyring::{Keyring, Resolved, Standing, store_failed};
pub use running::Ended;

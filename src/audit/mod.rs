//! The audit trail of uses: nothing is forwarded before it is written down, and nothing written is lost or told twice (K16).
//!
//! A use is written as BEGIN before it is forwarded and as END when its last byte has gone out. Both go into the spool,
//! a folder of preallocated segments: written entries survive the end of this process, and a full disk shows before a
//! request depends on it. ENDs carry a dense `sequence` and are shipped in its order into the store's log, which takes
//! each exactly once. After a crash every BEGIN without an END gets an END with the outcome `unknown`.
//!
//! A power cut may cost what `audit.spool.sync` allows, and never more: only what has been forced to disk is shipped,
//! so that the store and the spool cannot disagree about a sequence after it. Creates and revokes are recorded by the
//! store itself, in the transaction that makes the change.

mod spool;

mod core;
mod keeper;
mod log;
mod refusals;

mod entry;
mod folder;
mod recover;
mod segment;

mod closed;
mod ship;

#[cfg(test)]
mod testing;

#[cfg(feature = "fuzzing")]
pub mod fuzzing;

pub use folder::SpoolError;
pub use ship::{catch_up, ship};
pub use spool::{Spool, SpoolFull, Ticket};

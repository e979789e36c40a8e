//! What fuzzing drives: one function for each reader of strangers' bytes, which asserts what must hold of any bytes.
//!
//! Compiled for `tests/fuzz` alone, by the feature `fuzzing`. The functions stand beside what they drive, because
//! that is nobody else's business; here they are gathered. A target that only called its reader would find nothing
//! but panics, so each compares: with another reading, with the reading of the same bytes in pieces, with what was written.

pub use crate::admin::auth::fuzzing::{jwks, token};
pub use crate::admin::fuzzing::cursor;
pub use crate::audit::fuzzing::spool;
pub use crate::edge::fuzzing::{request_chunks, request_head};
pub use crate::gateway::forward_fuzzing::{answer, answer_chunks, header_filter};
pub use crate::gateway::fuzzing::target;

//! Who is calling: a user's token in, a `Caller` out, or a reason why not.
//!
//! `tokens.rs` checks a token, `key_set.rs` pins the keys of an issuer, `jwks.rs` keeps them current, `local.rs` is
//! the local issuer that `assure-gateway token` signs for. An API key is not a token: it fails here like any other
//! text (K15).

mod caller;
mod jwks;
mod key_set;
pub mod local;
mod tokens;

pub(crate) use caller::{Caller, Editor, Viewer};
pub(crate) use tokens::TokenFault;
pub use tokens::{Verifier, VerifierError};

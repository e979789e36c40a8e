//! Who is calling: a user's token in, a `Caller` out, or a reason why not.
//!
//! `tokens.rs` checks a token, `key_set.rs` pins the keys of an issuer, `jwks.rs` keeps them current, `local.rs` is
//! the local issuer that `assure-gateway token` signs for; `cookie.rs` is the page's session, `sign_in.rs` a link to it. An API key is not a token: it fails here like any other
//! text (K15).

mod caller;
mod cookie;
mod jwks;
mod key_set;
pub mod local;
mod sign_in;
mod tokens;

#[cfg(feature = "fuzzing")]
pub mod fuzzing;

pub(crate) use caller::{Caller, Editor, Viewer, verified};
pub(crate) use cookie::{SessionCookie, TOKEN_BYTES_MAX};
pub use sign_in::{LINK_LIFE, SignInLinks};
pub(crate) use tokens::{TokenFault, freeze_permissions};
pub use tokens::{Verifier, VerifierError};

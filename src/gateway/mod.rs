//! The life of one request, one file per step, in path order.
//!
//! credential → resolve → admit → limit → policy → sign → begin → forward, and always an audit record. `handle`
//! holds the order; each step returns evidence that the next one demands, so that nothing can be forwarded which
//! was not admitted, counted, granted, signed and written down.

mod handle;
mod settings;

mod target;
mod client_address;
mod credential;
mod resolve;
mod admit;
mod limit;
mod policy;
mod sign;
mod exchange;
mod forward;
mod answer;
mod respond;
mod linger;
mod cuts;

#[cfg(feature = "fuzzing")]
pub mod fuzzing;

use std::net::SocketAddr;

pub use answer::AnswerBody;
pub use client_address::Transport;
pub use cuts::Cuts;
pub use exchange::Books;
pub use forward::Forwarder;
#[cfg(feature = "fuzzing")]
pub use forward::fuzzing as forward_fuzzing;
pub use handle::{Gateway, refuse_unparsed};
pub use limit::Limiter;
pub use resolve::Keyring;
pub use settings::{Settings, SettingsError};
pub use target::{headers_too_large, target_too_long, unparsable};

/// Who is on the other end of a connection, as the edge tells it.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The peer's address; behind a PROXY protocol, the one it names.
    pub address: SocketAddr,
    /// How the connection is protected.
    pub transport: Transport,
}

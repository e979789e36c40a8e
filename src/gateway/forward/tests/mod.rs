//! The forwarder against real sockets: a raw client, a small hyper server that does what the line does around
//! forwarding, and upstreams that follow a script byte by byte, because the interesting ones are broken.
//!
//! Tests with the whole binary are in `tests/gateway`.

mod answers;
mod bodies;
mod connections;
pub(super) mod support;
mod upgrades;

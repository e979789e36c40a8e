//! The forwarder against real sockets: a raw client, a small hyper server that does what the line does around
//! forwarding, and upstreams that follow a script byte by byte, because the interesting ones are broken.

mod answers;
mod bodies;
mod connections;
pub(super) mod support;
mod upgrades;

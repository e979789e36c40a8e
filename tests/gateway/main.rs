//! The promises, tested on the real binary: one file per promise, each test a true sentence.
//!
//! Every test starts its own gateway on its own folder, with its own recording upstream, so tests run side by side.
//! `support` holds what they drive it with. A test that can pass without the promise being kept is a defect.

#![expect(clippy::indexing_slicing, reason = "a test that indexes what is not there fails, which is its job")]

mod admin_keys;
mod admission;
mod assertion;
mod audit;
mod bad_days;
mod bad_disks;
mod bad_times;
mod bad_upstreams;
mod bodies;
mod cli;
mod clients;
mod config;
mod conformance;
mod consumers;
mod demo;
mod descriptors;
mod desync;
mod desync_vectors;
mod differential;
mod drain;
mod floods;
mod forged_tokens;
mod forgetting;
mod forwarding;
mod framing;
mod hostile;
mod http2_desync;
mod http2_framing;
mod http2_upstreams;
mod limits;
mod misbehaving;
mod model;
mod moving;
mod ops;
mod page;
#[cfg(feature = "mutants")]
mod panics;
mod policy;
mod redis_away;
mod redis_start;
mod replicas;
mod revocation;
mod rolling;
mod running;
mod secrets;
#[path = "../servers/mod.rs"]
mod servers;
mod stops;
mod support;
mod tls;
mod tokens;
mod topologies;
mod upgrades;
mod upstream_tls;

//! What a newcomer gets: an upstream of our own, a firm, a user and a first key.
//!
//! `config/gateway.yaml`, which is also what runs where there is no configuration at all, sends everything to the
//! endpoint `demo://`. The upstream behind it does what a real one would: it fetches the gateway's JWKS, verifies the
//! assertion of each request with a library, and answers with what it was told, so that firm and permissions can be
//! seen arriving. Without a valid assertion it answers 401, because nothing but the gateway may call it.

mod upstream;

use std::net::SocketAddr;

use crate::config::{Config, DEMO_ENDPOINT};

pub use upstream::{DemoUpstream, answer};

/// The firm of the demo.
pub const FIRM: &str = "demo-firm";
/// The user who creates the demo's first key.
pub const USER: &str = "demo-user";
/// What that user is called.
pub const USER_NAME: &str = "Demo user";
/// What that user may do.
pub const PERMISSIONS: [&str; 4] = ["Edit clients", "Edit firm settings", "View clients", "View firm settings"];
/// What the demo's first key is called.
pub const KEY_NAME: &str = "Demo key";

/// The names of the upstreams that are the demo's.
pub fn upstreams(config: &Config) -> Vec<String> {
    let is_demo = |endpoints: &[String]| endpoints.iter().any(|endpoint| endpoint == DEMO_ENDPOINT);
    config.upstreams.iter().filter(|(_, upstream)| is_demo(&upstream.endpoints)).map(|(name, _)| name.clone()).collect()
}

/// The configuration with the demo's true address in the place of `demo://`.
pub fn resolve(mut config: Config, address: Option<SocketAddr>) -> Config {
    let Some(address) = address else { return config };
    let endpoints = config.upstreams.values_mut().flat_map(|upstream| &mut upstream.endpoints);
    endpoints.filter(|endpoint| *endpoint == DEMO_ENDPOINT).for_each(|endpoint| *endpoint = format!("http://{address}"));
    config
}

//! The API-key gateway of Assure Pro: what this is, where things are, what never happens.
//!
//! A request's way: accept → tls → http (`edge`) → credential → resolve → admit → limit → policy → sign → begin → forward
//! (`gateway`) → audit (always). The order stands in one function, `gateway::Gateway::handle`.
//!
//! Arrows point to `domain`. What never happens:
//! - `edge`, `gateway` and `admin` do not see each other; only `app` sees them all.
//! - Nothing but `clock` reads the time, nothing but `tasks` spawns, nothing but `config` and `main` reads the environment.
//! - A request that was not admitted, counted, granted, signed and written down is not forwarded: each step returns the
//!   evidence that the next one demands, and only the file of the step can make it.
//! - A secret is in no log, error, metric or `Debug`.
//!
//! Foreign crates stay where they are used: `redb` in `store::embedded`, `redis` and `deadpool` in `store::redis`, `moka` in `gateway::resolve`, `rustls` in
//! `edge::tls`, `dial` and the PEM reader of `signing`, `jsonwebtoken` in `admin::auth` and the demo's upstream, `axum`
//! and `utoipa` in `admin`, `prometheus` in `metrics`.

// The product's words; pure.
pub mod domain;

// What the operator writes.
pub mod config;

// The machine: time, deadlines, tasks, numbers, outgoing connections.
pub mod clock;
pub mod deadline;
pub mod dial;
pub mod fetch;
pub mod metrics;
pub mod tasks;

// What replicas share, and what this one knows of it.
pub mod coherence;
pub mod store;

// What is written down and what is signed.
pub mod audit;
pub mod signing;

// The three listeners.
pub mod admin;
pub mod edge;
pub mod gateway;
pub mod ops;

// Where everything meets.
pub mod app;
pub mod cli;
pub mod demo;

// What fuzzing drives: nothing, unless compiled for it.
#[cfg(feature = "fuzzing")]
pub mod fuzzing;

// Which rules are broken on purpose: none, unless compiled for the model.
pub mod mutants;

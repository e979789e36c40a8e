//! The second listener: people and their programs manage a firm's keys here and read its activity log.
//!
//! `server.rs` lists the routes; `guard.rs` is what every request passes first and every answer last; `auth` says
//! who is calling; `keys.rs`, `users.rs` and `activity.rs` are the work; `session.rs` and `page.rs` are what people see of it. The firm is always the token's: no request names one.
//! Leaves sockets, TLS and connection limits to whoever serves the [`handler`].

mod server;
mod settings;

mod guard;
mod host;
mod problem;
mod request;
mod strict_json;

pub mod auth;

mod activity;
mod activity_streams;
mod cursor;
mod followers;
mod csv;
mod keys;
mod session;
mod users;
mod views;
mod whoami;

mod openapi;
mod page;

#[cfg(feature = "fuzzing")]
pub mod fuzzing;

pub use openapi::document;
pub use server::{AdminState, Peer, handler, service};
pub use settings::{Settings, SettingsError};

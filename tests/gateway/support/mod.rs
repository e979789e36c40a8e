//! What the tests drive the real binary with: real processes, real sockets, real clients.
//!
//! `gateway` starts the binary on a folder of its own and knows its addresses, its log and its admin API;
//! `upstream` is the service behind it, which writes down every byte it was sent, and `http2_upstream` one that speaks HTTP/2 as badly as a test wants; `faults` judges what comes of it; `client`, `http2` and `frames` are the
//! tools in front of it; `wire` reads HTTP/1.1 strictly, for both sides; `identity` is a foreign issuer of user
//! tokens; `rows` are tables of raw requests; `browser` is a real Chromium in front of the page; `redis` is a real redis-server, `link` a connection to it that breaks; `disk` is one that fills up; `clocked` a gateway whose clocks are set; `crowd` fills a spool with open uses; `program` runs curl, Python and Node. Nothing here sleeps to wait for something: see `eventually`.

pub(crate) mod browser;
pub(crate) mod client;
pub(crate) mod clocked;
pub(crate) mod crowd;
pub(crate) mod disk;
pub(crate) mod eventually;
pub(crate) mod faults;
pub(crate) mod frames;
pub(crate) mod gateway;
pub(crate) mod http2;
pub(crate) mod http2_upstream;
pub(crate) mod identity;
pub(crate) mod link;
pub(crate) mod program;
pub(crate) mod redis;
pub(crate) mod rows;
pub(crate) mod upstream;
pub(crate) mod wire;

use std::time::Duration;

pub(crate) use browser::Browser;
pub(crate) use client::{Client, Request};
pub(crate) use gateway::{Gateway, Key};
pub(crate) use http2::Http2;
pub(crate) use upstream::{Gate, Reply, Upstream};
pub(crate) use wire::{Answer, Broken, End};

/// The firm and the user that tests act for unless they say otherwise.
pub(crate) const FIRM: &str = "firm-1";
pub(crate) const USER: &str = "user-1";
/// The two permissions that manage keys (contract, `admin.auth.permissions`).
pub(crate) const VIEW: &str = "View firm settings";
pub(crate) const EDIT: &str = "Edit firm settings";

/// How long anything that is promised "soon" may take on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(10);
/// The product's largest request body (K14).
pub(crate) const BODY_BYTES_MAX: usize = 10 * 1024 * 1024;

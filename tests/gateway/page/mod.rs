//! K18: the API keys page in a real browser, by mouse and by keyboard alone, at a desk and on a phone, by day and by night.
//!
//! `sign_in` is about who gets in and on whose word; `keys` goes through the help page, flow by flow; `rotation` through its
//! four steps; `warnings` through what the list points out (K19); `activity` through the log; `craft` through what keeps nobody out; `encrypted` is the page over TLS.

mod activity;
mod craft;
mod encrypted;
mod keys;
mod rotation;
mod sign_in;
mod warnings;

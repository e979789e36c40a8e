//! What stands beside an nginx with `auth_request` and does what it cannot: look up the key, count it, name its assertion.
//!
//! As small and fast as such a thing can be, so that the comparison is not won against a strawman: one hash map, two counters per key
//! (a window that slides over two minutes), an assertion that was made beforehand. It signs nothing and forgets all when it ends.

use std::collections::HashMap;
use std::fs;
use std::time::Instant;

use crate::arguments::Arguments;
use crate::server::{Service, header, serve};

const WINDOW_S: u64 = 60;
/// As long as the gateway's: header, claims with five permissions, Ed25519 signature.
const ASSERTION_CHARS: usize = 560;
const UNKNOWN: &[u8] = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n";
/// `auth_request` passes on 401 and 403 only; the configuration turns this one into 429.
const OVER_LIMIT: &[u8] = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n";

#[derive(Default)]
struct Window {
    minute: u64,
    before: u64,
    now: u64,
}

impl Window {
    /// Counts one more request at `seconds`, unless the last 60 seconds have had `limit`.
    fn admits(&mut self, seconds: u64, limit: u64) -> bool {
        let minute = seconds / WINDOW_S;
        if minute != self.minute {
            self.before = if minute == self.minute + 1 { self.now } else { 0 };
            (self.minute, self.now) = (minute, 0);
        }
        let share_left = WINDOW_S - seconds % WINDOW_S;
        let is_free = self.before * share_left / WINDOW_S + self.now < limit;
        self.now += u64::from(is_free);
        is_free
    }
}

struct Sidecar {
    keys: HashMap<Vec<u8>, (Vec<u8>, Window)>,
    limit: u64,
    began: Instant,
}

/// Serves until the process is ended.
pub fn run(arguments: &Arguments) -> Result<(), String> {
    let file = arguments.text("keys").ok_or("--keys is missing")?;
    let text = fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let keys = text.lines().enumerate().map(|(place, key)| (key.as_bytes().to_vec(), (accepted(place), Window::default()))).collect();
    let mut sidecar = Sidecar { keys, limit: arguments.or("per-minute", 1_000_000)?, began: Instant::now() };
    serve(arguments.loopback("listen")?, &mut sidecar)
}

fn accepted(place: usize) -> Vec<u8> {
    let assertion = format!("{place:a>ASSERTION_CHARS$}");
    format!("HTTP/1.1 200 OK\r\nX-Key-Id: key-{place}\r\nX-Assure-Jwt-Assertion: {assertion}\r\nContent-Length: 0\r\n\r\n").into_bytes()
}

impl Service for Sidecar {
    fn answer(&mut self, head: &[u8], out: &mut Vec<u8>) {
        let credential = header(head, "authorization").and_then(|value| value.strip_prefix(b"Bearer "));
        let Some((answer, window)) = credential.and_then(|key| self.keys.get_mut(key)) else {
            return out.extend_from_slice(UNKNOWN);
        };
        let is_free = window.admits(self.began.elapsed().as_secs(), self.limit);
        out.extend_from_slice(if is_free { answer } else { OVER_LIMIT });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_slides() {
        let mut window = Window::default();
        assert!((0..10).all(|_| window.admits(59, 10)) && !window.admits(59, 10));
        assert!(!window.admits(60, 10), "the minute before still counts in full");
        assert!(window.admits(90, 10), "half of it has gone");
        assert!((0..9).filter(|_| window.admits(300, 10)).count() == 9, "a long pause forgets");
    }
}

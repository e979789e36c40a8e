//! Where a secret could be left, and in which forms it would be found there.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::support::SOON;
use crate::support::eventually::eventually;

/// A place by its name, and what is in it.
pub(super) type Place = (String, Vec<u8>);

/// What of a secret nobody may see: a key's characters behind the display prefix, a token's signature, the whole of a word.
fn hidden_part(secret: &str) -> &str {
    match secret.strip_prefix("assure_") {
        Some(_) => &secret[15..],
        None => secret.rsplit('.').next().unwrap_or(secret),
    }
}

pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD_NO_PAD.encode(bytes)
}

/// The forms that programs print bytes in: as they are, as a list of numbers, in hexadecimal, in base64 at any offset.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    let part = hidden_part(secret);
    let decimal = format!("{:?}", part.as_bytes());
    let hex: String = part.bytes().map(|byte| format!("{byte:02x}")).collect();
    // Whole groups of three only: what stands around decides the characters at the ends.
    let offsets = (0..3).map(|offset| base64(&part.as_bytes()[offset..offset + (part.len() - offset) / 3 * 3]));
    let texts = [part.to_owned(), decimal.trim_matches(['[', ']']).to_owned(), hex.to_uppercase(), hex];
    texts.into_iter().chain(offsets).map(String::into_bytes).collect()
}

/// Each place that holds a secret, named without the secret.
pub(super) fn findings(places: &[Place], secrets: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for (number, secret) in secrets.iter().enumerate() {
        let forms = forms(secret);
        for (place, bytes) in places {
            if let Some(at) = forms.iter().find_map(|form| position(bytes, form)) {
                let around = &bytes[at.saturating_sub(120)..at];
                found.push(format!("secret {number} in {place}, after {:?}", String::from_utf8_lossy(around)));
            }
        }
    }
    found
}

fn position(bytes: &[u8], form: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, form)
}

/// Hears every command that a Redis is sent.
pub(super) struct Monitor(Arc<Mutex<Vec<u8>>>);

impl Monitor {
    pub(super) fn start(redis: SocketAddr) -> Self {
        let mut socket = TcpStream::connect(redis).expect("Redis answers");
        socket.write_all(b"MONITOR\r\n").expect("Redis answers");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&heard);
        thread::spawn(move || {
            let mut piece = [0; 64 * 1024];
            while let Ok(count @ 1..) = socket.read(&mut piece) {
                kept.lock().expect("no holder panics").extend_from_slice(&piece[..count]);
            }
        });
        let monitor = Self(heard);
        eventually!(SOON, monitor.heard().starts_with(b"+OK"), "Redis lets itself be watched");
        monitor
    }

    pub(super) fn heard(&self) -> Vec<u8> {
        self.0.lock().expect("no holder panics").clone()
    }
}

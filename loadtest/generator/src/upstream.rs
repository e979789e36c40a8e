//! The upstream: 200 with 1 KiB, or with as many bytes as a path that ends in `/bytes/N` asks for; a path that ends in
//! `/echo` is answered with the head of its request, so that it can be seen what a proxy made of it.

use std::io::Write;

use crate::arguments::Arguments;
use crate::server::{Service, serve};

const DEFAULT_BYTES: usize = 1024;
/// Largest answer that may be asked for, in bytes.
const BYTES_MAX: usize = 16 * 1024 * 1024;

struct Upstream {
    content: Vec<u8>,
}

/// Serves until the process is ended.
pub fn run(arguments: &Arguments) -> Result<(), String> {
    serve(arguments.loopback("listen")?, &mut Upstream { content: vec![b'x'; BYTES_MAX] })
}

impl Service for Upstream {
    fn answer(&mut self, head: &[u8], out: &mut Vec<u8>) {
        let target = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        let content = if target.ends_with(b"/echo") { head } else { &self.content[..bytes_wanted(target)] };
        // A vector takes all that is written to it.
        let _ = write!(out, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", content.len());
        out.extend_from_slice(content);
    }
}

fn bytes_wanted(target: &[u8]) -> usize {
    let text = std::str::from_utf8(target).unwrap_or_default();
    let wanted = text.rsplit_once("/bytes/").and_then(|(_, digits)| digits.parse().ok());
    wanted.unwrap_or(DEFAULT_BYTES).min(BYTES_MAX)
}

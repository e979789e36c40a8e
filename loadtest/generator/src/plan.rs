//! What a load is: whom it asks for what, how often, over how many connections, for how long.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use crate::arguments::Arguments;
use crate::transport;

/// A load, as the command line describes it.
pub struct Plan {
    /// Whom it asks.
    pub target: SocketAddr,
    /// Present where the connections have TLS.
    pub tls: Option<Arc<ClientConfig>>,
    /// How many connections there are at once.
    pub connections: usize,
    /// After how many answers a connection is replaced; `None`: never.
    pub per_connection: Option<u64>,
    /// Requests a second, whatever the answers do (open loop); `None`: each connection asks again when it was answered.
    pub rate: Option<f64>,
    /// How long requests are begun.
    pub span: Duration,
    /// Most requests that are begun; `None`: as many as the span allows.
    pub requests: Option<u64>,
    /// How many zeros each request has as its body.
    pub body_bytes: u64,
    keys: Vec<String>,
    /// One for each path that is asked for.
    before_key: Vec<Vec<u8>>,
    after_key: Vec<u8>,
}

impl Plan {
    /// Reads the arguments of `load`.
    pub fn read(arguments: &Arguments) -> Result<Self, String> {
        let target = arguments.loopback("target")?;
        let body_bytes = arguments.or("body-bytes", 0)?;
        let per_connection = arguments.maybe("per-connection")?;
        let (before_key, after_key) = heads(arguments, target, body_bytes, per_connection == Some(1))?;
        Ok(Self {
            target,
            tls: if arguments.or("tls", false)? { Some(transport::tls()?) } else { None },
            connections: arguments.or("connections", 64)?,
            per_connection,
            rate: arguments.maybe("rate")?,
            span: Duration::from_secs_f64(arguments.or("seconds", 1.0)?),
            requests: arguments.maybe("requests")?,
            body_bytes,
            keys: keys(arguments)?,
            before_key,
            after_key,
        })
    }

    /// Writes the head of the request with this number; keys are taken in turn.
    pub fn write_head(&self, number: u64, out: &mut Vec<u8>) {
        let path = usize::try_from(number).unwrap_or(0) % self.before_key.len();
        out.extend_from_slice(&self.before_key[path]);
        if !self.keys.is_empty() {
            let place = usize::try_from(number).unwrap_or(0) % self.keys.len();
            out.extend_from_slice(b"Authorization: Bearer ");
            out.extend_from_slice(self.keys[place].as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(&self.after_key);
    }
}

fn keys(arguments: &Arguments) -> Result<Vec<String>, String> {
    let Some(file) = arguments.text("keys") else { return Ok(Vec::new()) };
    let text = fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// The parts of a head before and behind the credential; `{n}` in the path stands for 0 to `--paths`, in turn.
fn heads(arguments: &Arguments, target: SocketAddr, body_bytes: u64, is_last: bool) -> Result<(Vec<Vec<u8>>, Vec<u8>), String> {
    let path = arguments.text("path").unwrap_or("/v1/clients/17");
    let method = arguments.text("method").unwrap_or("GET");
    if path.contains([' ', '\r', '\n']) || method.contains([' ', '\r', '\n']) {
        return Err("--path and --method are one word".into());
    }
    let before = |number: u32| {
        let path = path.replace("{n}", &number.to_string());
        format!("{method} {path} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: loadgen\r\nAccept: */*\r\n").into_bytes()
    };
    let paths = arguments.or("paths", 1_u32)?.max(1);
    let length = if body_bytes > 0 { format!("Content-Length: {body_bytes}\r\n") } else { String::new() };
    let close = if is_last { "Connection: close\r\n" } else { "" };
    Ok(((0..paths).map(before).collect(), format!("{length}{close}\r\n").into_bytes()))
}

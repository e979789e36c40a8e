//! Calls to a running gateway's admin listener.
//!
//! One request for each call, over `fetch`, with the token from the environment or `--token`. What the gateway says in a
//! problem is what the person reads; a token never stands in an error.

use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde::Deserialize;
use serde_json::Value;

use super::Failure;
use crate::dial::Dialer;
use crate::fetch::{self, Answer, ClearText, FetchError, Url};

/// How long a call may take: longer than the admin listener itself waits for a revocation.
const CALL_MAX: Duration = Duration::from_secs(40);
/// How long a health check may take; orchestrators ask again.
const HEALTH_MAX: Duration = Duration::from_secs(3);
/// Longest answer to a health check, in bytes.
const HEALTH_BYTES_MAX: usize = 4 * 1024;
/// Longest answer, in bytes: a thousand records of the log.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Which gateway, and as whom.
#[derive(Clone, Args)]
pub struct Server {
    /// The admin listener of a running gateway.
    #[arg(long, global = true, value_name = "URL", default_value = "http://127.0.0.1:8081", value_parser = Url::parse)]
    admin: Url,
    /// A user's token; better given by the environment, which other users of this machine cannot see.
    #[arg(long, global = true, value_name = "TOKEN", env = "ASSURE_ADMIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

/// Where a stream is taken up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum From {
    /// With the first event of all that the target's filters admit.
    Beginning,
    /// With what comes after now.
    Now,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Server({})", self.admin)
    }
}

/// What of a problem is shown.
#[derive(Deserialize)]
struct Problem {
    detail: String,
    request_id: Option<String>,
}

impl Server {
    /// Asks for a document.
    pub(super) async fn get(&self, target: &str) -> Result<Value, Failure> {
        self.call(Method::GET, target, Bytes::new()).await
    }

    /// Sends a document.
    pub(super) async fn post(&self, target: &str, body: &impl serde::Serialize) -> Result<Value, Failure> {
        let body = serde_json::to_vec(body).expect("a request is plain data");
        self.call(Method::POST, target, body.into()).await
    }

    /// Follows a stream of events, from its end or from its beginning, and hands on the data of each.
    pub(super) async fn follow(&self, target: &str, from: From, mut each: impl FnMut(&str) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut request = self.request(Method::GET, target, Bytes::new())?;
        request.headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        if from == From::Beginning {
            request.headers.insert(HeaderName::from_static("last-event-id"), HeaderValue::from_static("0"));
        }
        let dialer = self.dialer()?;
        let mut lines = Lines::default();
        let mut failed = None;
        let answer = fetch::follow(&dialer, request, |piece| {
            lines.feed(piece, |line| {
                if let (Some(data), None) = (line.strip_prefix("data: "), &failed) {
                    failed = each(data).err();
                }
            });
            if failed.is_some() { fetch::Onward::Stop } else { fetch::Onward::Continue }
        });
        let answer = answer.await.map_err(|error| self.unreachable(&error))?;
        failed.map_or_else(|| read(&answer).map(drop), Err)
    }

    async fn call(&self, method: Method, target: &str, body: Bytes) -> Result<Value, Failure> {
        let request = self.request(method, target, body)?;
        let answer = fetch::fetch(&self.dialer()?, request).await.map_err(|error| self.unreachable(&error))?;
        read(&answer)
    }

    fn request(&self, method: Method, target: &str, body: Bytes) -> Result<fetch::Request, Failure> {
        let token = self.token.as_deref().map(str::trim).filter(|token| !token.is_empty());
        let token = token
            .ok_or_else(|| Failure::new("a user's token is needed: set ASSURE_ADMIN_TOKEN, or make one with `assure-gateway token`"))?;
        let mut bearer = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| Failure::new("the token contains a character that no token has"))?;
        bearer.set_sensitive(true);
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, bearer);
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("assure-gateway/", env!("CARGO_PKG_VERSION"))));
        if !body.is_empty() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        Ok(fetch::Request {
            method,
            url: self.admin.with_target(target),
            headers,
            body,
            deadline: CALL_MAX,
            answer_bytes_max: ANSWER_BYTES_MAX,
            clear_text: ClearText::Anywhere,
        })
    }

    fn dialer(&self) -> Result<Dialer, Failure> {
        Dialer::new(None, &[b"http/1.1"]).map_err(|error| Failure::new(format!("the machine's trust roots cannot be read: {error}")))
    }

    fn unreachable(&self, error: &FetchError) -> Failure {
        Failure::new(format!("no answer from {}: {error}", self.admin.with_target("/")))
    }
}

/// Asks the ops listener whether the gateway is alive.
pub(super) async fn healthcheck(ops: &Url) -> Result<(), Failure> {
    let dialer = Dialer::new(None, &[]).map_err(|error| Failure::new(format!("the machine's trust roots cannot be read: {error}")))?;
    let request = fetch::Request {
        method: Method::GET,
        url: ops.with_target("/healthz"),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        deadline: HEALTH_MAX,
        answer_bytes_max: HEALTH_BYTES_MAX,
        clear_text: ClearText::Anywhere,
    };
    match fetch::fetch(&dialer, request).await {
        Ok(answer) if answer.status.is_success() => Ok(()),
        Ok(answer) => Err(Failure::new(format!("the gateway says {}", answer.status))),
        Err(error) => Err(Failure::new(format!("no answer from {}: {error}", ops.with_target("/healthz")))),
    }
}

fn read(answer: &Answer) -> Result<Value, Failure> {
    if answer.status.is_success() {
        if answer.body.is_empty() {
            return Ok(Value::Null);
        }
        return serde_json::from_slice(&answer.body).map_err(|_| Failure::new("the answer is not JSON; is --admin the admin listener?"));
    }
    Err(refusal(answer))
}

fn refusal(answer: &Answer) -> Failure {
    let request_id = answer.headers.get(HeaderName::from_static("x-request-id")).and_then(|id| id.to_str().ok()).map(str::to_owned);
    match serde_json::from_slice::<Problem>(&answer.body) {
        Ok(problem) if answer.status.is_server_error() => {
            Failure::new(format!("{} (request {})", problem.detail, problem.request_id.or(request_id).unwrap_or_default()))
        }
        Ok(problem) => Failure::new(problem.detail),
        Err(_) if answer.status == StatusCode::NOT_FOUND => Failure::new("the answer is 404; is --admin the admin listener?"),
        Err(_) => Failure::new(format!("the answer is {} without an explanation; is --admin the admin listener?", answer.status.as_u16())),
    }
}

/// Puts pieces of a stream together to lines.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn feed(&mut self, piece: &[u8], mut each: impl FnMut(&str)) {
        self.0.extend_from_slice(piece);
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.0.drain(..=end).collect();
            each(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']));
        }
        // A line without end is not of this protocol; what cannot be shown need not be kept.
        if self.0.len() > ANSWER_BYTES_MAX {
            self.0.clear();
        }
    }
}

/// Percent-encodes a query value (RFC 3986 section 2.1): all but unreserved characters.
pub(super) fn encoded(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_from_pieces() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for piece in [&b"id: 1\nda"[..], b"ta: {}", b"\r\n\n", b"rest"] {
            lines.feed(piece, |line| seen.push(line.to_owned()));
        }
        assert_eq!(seen, ["id: 1", "data: {}", ""]);
    }

    #[test]
    fn query_values_are_encoded() {
        assert_eq!(encoded("key.use"), "key.use");
        assert_eq!(encoded("a b&c=é+"), "a%20b%26c%3D%C3%A9%2B");
    }

    #[test]
    fn a_refusal_is_one_sentence() {
        let answer = |status: u16, body: &'static str| Answer {
            status: StatusCode::from_u16(status).expect("a status"),
            headers: HeaderMap::new(),
            body: Bytes::from_static(body.as_bytes()),
        };
        let problem = r#"{"detail":"There is no such key.","request_id":"r1","code":"not_found"}"#;
        assert_eq!(refusal(&answer(404, problem)).to_string(), "There is no such key.");
        assert_eq!(refusal(&answer(503, problem)).to_string(), "There is no such key. (request r1)");
        assert!(refusal(&answer(502, "<html>")).to_string().contains("502"));
    }
}

//! Tables of hostile requests over HTTP/1.1: raw bytes, and exactly what must come of them.
//!
//! All rows of a table are tried in one gateway before any is blamed. Each row is tried three times: alone, in two pieces,
//! and behind a good request in the same write; its outcome may not depend on that. A bench fills `{A}` with a credential, `{H}`
//! with Host, and gives ` /x` a name of its own, so that what arrives late is not charged to the next.

use super::{Client, End, Gateway, Key, Request};

/// What must come of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// This status and code and the end of the connection; the upstream has not even seen a head.
    Refused(u16, &'static str),
    /// The same, but the connection carries another request.
    Told(u16, &'static str),
    /// This status and code and the end of the connection; the upstream may have seen a head, but nothing complete.
    Broken(u16, &'static str),
    /// The end of the connection without a word; the upstream has seen nothing.
    Cut,
    /// Forwarded once, strictly framed, and answered.
    Forwarded,
}

/// 400, and the end.
pub(crate) const MALFORMED: Outcome = Outcome::Refused(400, "malformed_request");

/// How a row's bytes are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Manner {
    Alone,
    InTwoPieces,
    Pipelined,
}

/// A gateway, a key, and what has gone wrong so far.
pub(crate) struct Bench {
    pub(crate) gateway: Gateway,
    pub(crate) key: Key,
    wrong: Vec<String>,
    rows: usize,
    attempts: usize,
}

impl Bench {
    #[track_caller]
    pub(crate) fn start() -> Self {
        Self::over(Gateway::with(|config| config["limits"]["requests_per_minute"] = serde_json::json!(1_000_000)))
    }

    #[track_caller]
    pub(crate) fn over(gateway: Gateway) -> Self {
        let key = gateway.key();
        Self { gateway, key, wrong: Vec::new(), rows: 0, attempts: 0 }
    }

    /// Fills `{A}` with the credential and `{H}` with Host.
    pub(crate) fn fill(&self, row: &[u8]) -> Vec<u8> {
        let credential = format!("Authorization: Bearer {}\r\n", self.key.secret);
        replace(&replace(row, b"{A}", credential.as_bytes()), b"{H}", b"Host: localhost\r\n")
    }

    /// Tries a row of this class (an RFC's section or an attack's name) and notes what was wrong.
    pub(crate) fn check(&mut self, class: &str, row: &[u8], outcome: Outcome) {
        self.rows += 1;
        for manner in [Manner::Alone, Manner::InTwoPieces, Manner::Pipelined] {
            self.attempts += 1;
            if let Err(why) = self.attempt(row, outcome, manner) {
                let shown = row.escape_ascii().to_string();
                self.wrong.push(format!("[{class}] {manner:?}: {}\n    {outcome:?}, but {why}", shown.get(..200).unwrap_or(&shown)));
            }
        }
    }

    fn attempt(&self, row: &[u8], outcome: Outcome, manner: Manner) -> Result<(), String> {
        self.gateway.upstream.forget();
        let good = Request::get("/before").bearer(&self.key.secret).head();
        let name = format!("/row-{}", self.attempts);
        let bytes = replace(&self.fill(row), b" /x", format!(" {name}").as_bytes());
        let mut client = Client::connect(self.gateway.edge());
        // The gateway may close while we still send; what it answered counts.
        match manner {
            Manner::Alone => drop(client.send(&bytes)),
            Manner::InTwoPieces => {
                let (first, second) = bytes.split_at(bytes.len() / 2);
                drop(client.send(first).and_then(|()| client.send(second)));
            }
            Manner::Pipelined => {
                drop(client.send([&good[..], &bytes].concat()));
                let status = client.answer().map(|answer| answer.status);
                (status == Ok(200)).then_some(()).ok_or(format!("the good request before it is answered {status:?}"))?;
            }
        }
        let method = if bytes.starts_with(b"HEAD") { "HEAD" } else { "GET" };
        let answer = client.answer_to(method);
        let told = answer.as_ref().map(|answer| (answer.status, answer.code()));
        let seen: Vec<_> = self.gateway.upstream.seen().into_iter().filter(|seen| !is_elsewhere(&seen.target, &name)).collect();
        let whole = seen.iter().filter(|seen| seen.complete).count();
        let violations = self.gateway.upstream.violations();
        if !violations.is_empty() {
            return Err(format!("the upstream found fault: {violations:?}"));
        }
        let is_told = |status, code: &str| told == Ok((status, code.to_owned()));
        let is_right = match outcome {
            Outcome::Refused(status, code) => is_told(status, code) && seen.is_empty() && client.end() == End::Closed,
            Outcome::Told(status, code) => is_told(status, code) && seen.is_empty() && self.carries_on(&mut client),
            Outcome::Broken(status, code) => is_told(status, code) && whole == 0 && client.end() == End::Closed,
            Outcome::Cut => answer.is_err() && client.end() == End::Closed && seen.is_empty(),
            Outcome::Forwarded => told.as_ref().is_ok_and(|(status, _)| *status == 200) && seen.len() == 1 && whole == 1,
        };
        if is_right { Ok(()) } else { Err(format!("{told:?}, the upstream saw {} requests, {whole} of them whole", seen.len())) }
    }

    /// Whether the connection is good for another request.
    fn carries_on(&self, client: &mut Client) -> bool {
        client.exchange(&Request::get("/before").bearer(&self.key.secret)).is_ok_and(|answer| answer.status == 200)
    }

    /// Blames what was wrong, and shows that the gateway is unharmed; prints how many rows there were.
    #[track_caller]
    pub(crate) fn finish(mut self) {
        assert!(self.wrong.is_empty(), "{} attempts of {} rows went wrong:\n{}", self.wrong.len(), self.rows, self.wrong.join("\n"));
        self.gateway.assert_alive(&self.key);
        println!("{} rows, each tried three times", self.rows);
    }
}

/// Whether a target is the good request's or another row's.
fn is_elsewhere(target: &str, name: &str) -> bool {
    let is_ours = target.strip_prefix(name).is_some_and(|rest| !rest.starts_with(|first: char| first.is_ascii_digit()));
    target == "/before" || (target.starts_with("/row-") && !is_ours)
}

/// `text` with every `what` replaced.
pub(crate) fn replace(text: &[u8], what: &[u8], with: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + with.len());
    let mut rest = text;
    while let Some(place) = rest.windows(what.len()).position(|window| window == what) {
        out.extend_from_slice(&rest[..place]);
        out.extend_from_slice(with);
        rest = &rest[place + what.len()..];
    }
    out.extend_from_slice(rest);
    out
}

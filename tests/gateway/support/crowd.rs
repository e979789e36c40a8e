//! Uses that are open all at once, until the smallest spool has no room for another.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::eventually::found;
use super::http2::Started;
use super::{Answer, Gate, Gateway, Http2, Key, Reply, Request};

/// More than the smallest spool has room for.
const USES: usize = 400;

/// Open uses, the first of which that was refused, and what lets the others end.
pub(crate) struct Crowd {
    gate: Arc<Gate>,
    started: Vec<Started>,
    refused: usize,
    // Their streams end with them.
    _connections: Vec<Http2>,
}

impl Crowd {
    /// Limits that stop none of them before the spool does.
    pub(crate) fn configure(config: &mut Value) {
        config["audit"]["spool"]["size_max"] = json!("1MiB");
        config["limits"]["requests_per_minute"] = json!(100_000);
        config["upstreams"]["ledger"]["connections_max"] = json!(1_000);
    }

    /// Opens uses until one is refused for want of room, which was not forwarded.
    #[track_caller]
    pub(crate) fn fill(gateway: &Gateway, key: &Key) -> Self {
        let gate = Gate::new();
        let held = Arc::clone(&gate);
        gateway.upstream.answer(move |head| if head.start.contains("/held") { Reply::Held(Arc::clone(&held)) } else { Reply::ok() });
        // Each open use keeps room for its end; long targets make each of them large.
        let target = |turn: usize| format!("/held/{turn}/{}", "x".repeat(1_000));
        let connections: Vec<Http2> = (0..4).map(|_| Http2::connect(gateway.edge())).collect();
        let started: Vec<Started> =
            (0..USES).map(|turn| connections[turn % 4].start(&Request::get(&target(turn)).bearer(&key.secret))).collect();
        let refused = found(Duration::from_secs(60), "a use without room", || {
            started.iter().position(|started| {
                let (status, body) = started.so_far();
                status == 503 && String::from_utf8_lossy(&body).contains("audit_unavailable")
            })
        });
        assert_eq!(gateway.upstream.count(&target(refused)), 0, "what is refused was not forwarded");
        Self { gate, started, refused, _connections: connections }
    }

    /// Lets all end: the answer of the one that was refused, and how many were answered well.
    #[track_caller]
    pub(crate) fn end(self) -> (Answer, usize) {
        self.gate.open();
        let answers: Vec<_> = self.started.into_iter().map(Started::answer).collect();
        let answered = answers.iter().flatten().filter(|answer| answer.status == 200).count();
        (answers.into_iter().nth(self.refused).expect("it was started").expect("an answer"), answered)
    }
}

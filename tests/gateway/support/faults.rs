//! An upstream's fault, judged: what its client gets by either protocol, what the record says, and whether the connection
//! carries another request.
//!
//! How an upstream is made to misbehave, and how it counts what it was asked, is for the tests of each protocol.

use serde_json::Value;

use super::eventually::{eventually, found};
use super::{Answer, Client, End, Gateway, Http2, Key, Request, SOON};

/// What a client gets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Gets {
    /// The answer as it was: status and body.
    Whole(u16, &'static str),
    /// A head, and a body that visibly breaks off.
    Aborted(u16),
    /// 502 `upstream_broken`.
    Broken,
    /// 504 `upstream_timeout`.
    Timeout,
}
use Gets::{Aborted, Broken, Timeout, Whole};

/// Whether the connection may carry another request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Then {
    Kept,
    Dropped,
    /// The fault is a stream's, and the library's affair whether it ends the connection as well (RFC 9113 section 5.4.1).
    Either,
}

/// A fault in words, and what is to come of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault<'a> {
    pub(crate) what: &'a str,
    pub(crate) method: &'a str,
    pub(crate) gets: Gets,
    pub(crate) then: Then,
}

/// A gateway in front of an upstream that misbehaves.
pub(crate) struct Bench<U> {
    pub(crate) gateway: Gateway,
    pub(crate) upstream: U,
    pub(crate) editor: String,
    pub(crate) key: Key,
    /// How many requests were judged.
    pub(crate) rows: usize,
}

impl<U> Bench<U> {
    pub(crate) fn new(gateway: Gateway, upstream: U) -> Self {
        let (editor, key) = (gateway.editor(), gateway.key());
        Self { gateway, upstream, editor, key, rows: 0 }
    }

    /// Asks by both protocols with a fresh target each. `misbehave` sets the answer to that target, `counts` tells how many
    /// requests (of that target, if it can tell them apart) and connections the upstream has had.
    pub(crate) fn judge(&mut self, fault: Fault<'_>, misbehave: impl Fn(&Self, &str), counts: impl Fn(&Self, &str) -> (usize, usize)) {
        let Fault { what, method, gets, then } = fault;
        for protocol in ["HTTP/1.1", "HTTP/2"] {
            self.rows += 1;
            let target = format!("/row/{}", self.rows);
            let request = Request::new(method, &target).bearer(&self.key.secret);
            self.gateway.get(&self.key, "/first").expect(200);
            let (asked, connections) = counts(self, &target);
            misbehave(self, &target);
            let answer = if protocol == "HTTP/1.1" {
                let mut client = Client::connect(self.gateway.edge());
                let answer = client.exchange(&request).unwrap_or_else(|broken| panic!("{what}, {protocol}: {broken:?}"));
                assert!(answer.complete || client.end() != End::Open, "{what}: a connection with an answer that broke off is closed");
                Some(answer)
            } else {
                // A stream that was reset in the middle of an answer has none.
                Http2::connect(self.gateway.edge()).exchange(&request).ok()
            };
            assert_eq!(counts(self, &target).0 - asked, 1, "{what}, {protocol}: it is not repeated");
            look_at(answer.as_ref(), gets, &format!("{what}, {protocol}"));
            let next = self.gateway.get(&self.key, "/next");
            assert_eq!((next.status, next.text().as_str()), (200, "ok"), "after {what}, {protocol}");
            let opened = counts(self, &target).1 - connections;
            let is_expected = then == Then::Either && opened <= 1 || opened == usize::from(then == Then::Dropped);
            assert!(is_expected, "{what}, {protocol}: {opened} connections were opened afterwards");
            self.recorded(&target, gets, what);
        }
    }

    fn recorded(&self, target: &str, gets: Gets, what: &str) {
        let record = found(SOON, &format!("{what}: a record"), || {
            let path = |record: &Value| record["path"] == target;
            self.gateway.activity(&self.editor).into_iter().find(path)
        });
        let expected = match gets {
            Whole(status, _) => ("allowed", status, None),
            Aborted(status) => ("allowed", status, Some("upstream_broken")),
            Broken => ("upstream_broken", 502, Some("upstream_broken")),
            Timeout => ("upstream_timeout", 504, Some("upstream_timeout")),
        };
        let found = (record["outcome"].as_str(), record["status"].as_str(), record["reason"].as_str());
        assert_eq!(found, (Some(expected.0), Some(expected.1.to_string().as_str()), expected.2), "{what}: {record}");
    }

    /// Nothing is left of all those faults.
    pub(crate) fn rest(&self) {
        eventually!(SOON, self.gateway.metric("assure_gateway_requests_in_flight") == 0.0, "nothing is left in flight");
        assert!(!self.gateway.log().contains("panicked"), "{}", self.gateway.log());
        assert!(self.gateway.log().len() < 1024 * 1024, "an upstream's faults do not flood the log");
        assert!(self.gateway.is_ready(), "an upstream's faults are no reason to send clients elsewhere");
    }
}

fn look_at(answer: Option<&Answer>, gets: Gets, what: &str) {
    match (gets, answer) {
        (Whole(status, body), Some(answer)) => {
            assert_eq!((answer.status, answer.text().as_str(), answer.complete), (status, body, true), "{what}");
        }
        (Aborted(status), Some(answer)) => assert_eq!((answer.status, answer.complete), (status, false), "{what}"),
        (Aborted(_), None) => {}
        (Broken, Some(answer)) if answer.status != 502 => panic!("{what}: {}", answer.status),
        (Broken, Some(answer)) => drop(answer.clone().expect_problem(502, "upstream_broken")),
        (Timeout, Some(answer)) => drop(answer.clone().expect_problem(504, "upstream_timeout")),
        (_, None) => panic!("{what}: no answer"),
    }
}

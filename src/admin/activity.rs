//! The firm's activity log: a page, all pages as a stream, or what comes next as it comes.
//!
//! `application/json` answers one page, newest first, with a cursor to the next. `application/x-ndjson` streams
//! page after page. `text/event-stream` follows in the order of arrival, so that a record that comes late is not
//! missed; after a break `Last-Event-ID` goes on where it ended, and a reader removes repeats by `event_id`.
//! Streams end with the token that opened them, and when the listener drains.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::auth::{Caller, Viewer};
use super::cursor;
use super::followers::Following;
use super::problem::Problem;
use super::request::StrictQuery;
use super::server::Shared;
use crate::clock;
use crate::domain::{AuditRecord, Timestamp};
use crate::store::{ActivityOrder, ActivityPage, ActivityPlace, ActivityQuery};

/// Records of a page where the caller does not say.
const PAGE_RECORDS: usize = 100;
/// Most records of a page.
const PAGE_RECORDS_MAX: usize = 1000;
/// How often a follower looks for new records.
const FOLLOW_POLL: Duration = Duration::from_millis(200);
/// After how long a silent follower gets a comment, so that nobody on the way thinks the connection dead.
const FOLLOW_SILENCE_MAX: Duration = Duration::from_secs(15);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const EVENT_STREAM: &str = "text/event-stream";
const NDJSON: &str = "application/x-ndjson";

/// Which part of the log.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ReadQuery {
    /// Only this key, by its id.
    #[param(format = Uuid)]
    key: Option<String>,
    /// Only this action: `key.create`, `key.use` or `key.revoke`.
    action: Option<String>,
    /// Not before this moment (RFC 3339).
    #[param(format = DateTime)]
    since: Option<String>,
    /// Before this moment (RFC 3339).
    #[param(format = DateTime)]
    until: Option<String>,
    /// Records of a page, 100 by default; in a stream, records in all.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// `next_cursor` of the page before, with the same other parameters.
    cursor: Option<String>,
}

/// A page of the log.
#[derive(Serialize, ToSchema)]
pub(super) struct Activity {
    /// Newest first.
    #[schema(value_type = Vec<ActivityRecord>)]
    records: Vec<AuditRecord>,
    /// Asks for the next page; null on the last.
    next_cursor: Option<String>,
}

/// One action on a key. All members are strings; those that do not apply are absent.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes AuditRecord's JSON, which a test compares with it")]
pub(super) struct ActivityRecord {
    /// Names the record; a reader who sees it twice drops one.
    #[schema(format = Uuid)]
    event_id: String,
    /// When it was decided.
    #[schema(format = DateTime)]
    time: String,
    /// `key.create`, `key.use` or `key.revoke`.
    action: String,
    /// `allowed`, the code of the refusal, or `unknown` after a crash in mid-request.
    outcome: String,
    /// The firm.
    firm_id: String,
    /// The key.
    #[schema(format = Uuid)]
    key_id: String,
    /// What people call the key.
    key_name: String,
    /// The key's first characters.
    key_prefix: String,
    /// The user for create and revoke, the key for use.
    actor: String,
    /// The caller's address.
    client_ip: Option<String>,
    /// The caller's User-Agent.
    user_agent: Option<String>,
    /// The request that did it.
    request_id: Option<String>,
    /// W3C trace context.
    traceparent: Option<String>,
    /// HTTP method.
    method: Option<String>,
    /// Host asked for.
    host: Option<String>,
    /// Path without the query.
    path: Option<String>,
    /// The route that matched.
    route: Option<String>,
    /// The upstream it went to.
    upstream: Option<String>,
    /// Status of the answer.
    status: Option<String>,
    /// Body bytes of the request.
    request_bytes: Option<String>,
    /// Body bytes of the answer.
    response_bytes: Option<String>,
    /// Microseconds from the request's head to the answer's last byte.
    duration_us: Option<String>,
    /// Why it was refused, revoked or cut short.
    reason: Option<String>,
    /// The replica that wrote the record.
    replica: String,
    /// The record's place in that replica's spool, without gaps.
    sequence: Option<String>,
    /// How many alike refusals within a second this record stands for.
    count: Option<String>,
}

/// Reads the firm's activity log.
#[utoipa::path(
    get, path = "/v1/activity", tag = "activity", security(("bearer" = [])), params(ReadQuery),
    responses((status = 200, description = "A page, all records as lines (`Accept: application/x-ndjson`), or those to come (`Accept: text/event-stream`).", content(
        (Activity = "application/json"), (ActivityRecord = "application/x-ndjson"), (String = "text/event-stream"),
    )))
)]
pub(super) async fn read(
    State(shared): State<Shared>,
    Viewer(caller): Viewer,
    headers: HeaderMap,
    StrictQuery(asked): StrictQuery<ReadQuery>,
) -> Result<Response, Problem> {
    let form = Form::of(&headers);
    let query = parse_query(&asked, &caller)?;
    if let Some(key) = query.key {
        // A key of another firm does not exist here; an empty log would leave the caller guessing.
        shared.read("key", shared.state.store.key(caller.firm().clone(), key)).await?.ok_or(Problem::NotFound("key"))?;
    }
    match form {
        Form::Page => page(&shared, query).await,
        Form::Lines => lines(&shared, query, asked.limit, caller.expires()).await,
        Form::Events => events(&shared, query, &headers, &caller).await,
    }
}

fn parse_query(asked: &ReadQuery, caller: &Caller) -> Result<ActivityQuery, Problem> {
    let wrong = |what: &str, form: &str| Problem::Malformed(format!("{what} is {form}"));
    let moment = |what: &str, text: &Option<String>| {
        text.as_deref().map(|text| text.parse::<Timestamp>().map_err(|_| wrong(what, "a moment such as 2026-11-23T18:30:00Z"))).transpose()
    };
    let limit = asked.limit.unwrap_or(PAGE_RECORDS);
    if !(1..=PAGE_RECORDS_MAX).contains(&limit) {
        return Err(wrong("limit", "between 1 and 1000"));
    }
    let mut query = ActivityQuery {
        firm: caller.firm().clone(),
        key: asked.key.as_deref().map(|text| text.parse().map_err(|_| wrong("key", "a UUID with hyphens"))).transpose()?,
        action: asked
            .action
            .as_deref()
            .map(|text| text.parse().map_err(|_| wrong("action", "key.create, key.use or key.revoke")))
            .transpose()?,
        since: moment("since", &asked.since)?,
        until: moment("until", &asked.until)?,
        limit,
        order: ActivityOrder::NewestFirst { after: None },
    };
    if let Some(text) = &asked.cursor {
        let place = cursor::read(text, &query).ok_or_else(|| wrong("cursor", "a next_cursor of this question, unchanged"))?;
        query.order = ActivityOrder::NewestFirst { after: Some(place) };
    }
    Ok(query)
}

async fn page(shared: &Shared, query: ActivityQuery) -> Result<Response, Problem> {
    let page = shared.read("activity", shared.state.store.activity(query.clone())).await?;
    let next_cursor = next_place(&page).map(|place| cursor::write(place, &query));
    Ok(Json(Activity { records: page.records, next_cursor }).into_response())
}

fn next_place(page: &ActivityPage) -> Option<ActivityPlace> {
    let last = page.records.last().filter(|_| page.more)?;
    Some(ActivityPlace { time: last.time, event: last.event_id })
}

/// Why a stream ends before its end; the caller sees a body that broke off.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum StreamEnd {
    #[error("the store does not answer")]
    Store,
    #[error("the token has expired")]
    Expired,
}

async fn lines(shared: &Shared, query: ActivityQuery, limit: Option<usize>, expires: Timestamp) -> Result<Response, Problem> {
    struct Progress {
        shared: Shared,
        query: ActivityQuery,
        /// Records that may still follow, where the caller has set a limit.
        left: Option<usize>,
        next: Option<ActivityPage>,
    }
    let page_size = |left: Option<usize>| left.unwrap_or(PAGE_RECORDS_MAX).clamp(1, PAGE_RECORDS_MAX);
    let query = ActivityQuery { limit: page_size(limit), ..query };
    // The first page is read before the answer begins, so that a store that is away is a 503 and not a broken body.
    let first = shared.read("activity", shared.state.store.activity(query.clone())).await?;
    let progress = Progress { shared: shared.clone(), query, left: limit, next: Some(first) };
    let pages = stream::try_unfold(progress, move |mut progress| async move {
        let Some(page) = progress.next.take() else { return Ok(None) };
        let text: String = page.records.iter().map(|record| json_line(record) + "\n").collect();
        progress.left = progress.left.map(|left| left.saturating_sub(page.records.len()));
        if let Some(place) = next_place(&page).filter(|_| progress.left != Some(0)) {
            if clock::wall_now() >= expires {
                return Err(StreamEnd::Expired);
            }
            progress.query.order = ActivityOrder::NewestFirst { after: Some(place) };
            progress.query.limit = page_size(progress.left);
            let next = progress.shared.read("activity", progress.shared.state.store.activity(progress.query.clone())).await;
            progress.next = Some(next.map_err(|_| StreamEnd::Store)?);
        }
        Ok(Some((text, progress)))
    });
    Ok(streamed(NDJSON, Body::from_stream(pages)))
}

async fn events(shared: &Shared, query: ActivityQuery, headers: &HeaderMap, caller: &Caller) -> Result<Response, Problem> {
    if query.order != (ActivityOrder::NewestFirst { after: None }) {
        return Err(Problem::Malformed("a cursor belongs to pages; a stream goes on by Last-Event-ID".into()));
    }
    let following = shared.followers.join(caller.firm()).ok_or(Problem::TooManyFollowers)?;
    let mut query = ActivityQuery { limit: PAGE_RECORDS_MAX, order: ActivityOrder::Arrival { after: last_event_id(headers)? }, ..query };
    // Where the log ends is found out before the answer begins: whatever comes after the answer's head is shown.
    let first = shared.read("activity", shared.state.store.activity(query.clone())).await?;
    query.order = ActivityOrder::Arrival { after: Some(first.arrival) };
    let greeting = format!(": following\n\n{}", events_of(&first));
    let follower = Follower { shared: shared.clone(), query, expires: caller.expires(), greeting: Some(greeting), _following: following };
    let pieces =
        stream::try_unfold(follower, async |mut follower| Ok::<_, StreamEnd>(follower.next().await?.map(|piece| (piece, follower))));
    Ok(streamed(EVENT_STREAM, Body::from_stream(Box::pin(pieces))))
}

/// One caller who follows the log.
struct Follower {
    shared: Shared,
    query: ActivityQuery,
    expires: Timestamp,
    greeting: Option<String>,
    _following: Following,
}

impl Follower {
    /// Waits for the next piece of the stream; `None` when the listener drains or the token ends.
    async fn next(&mut self) -> Result<Option<String>, StreamEnd> {
        if let Some(greeting) = self.greeting.take() {
            return Ok(Some(greeting));
        }
        let stopping = self.shared.state.tasks.stopping();
        let silent_since = clock::boot_now();
        loop {
            if clock::wall_now() >= self.expires {
                return Ok(None);
            }
            let page =
                self.shared.read("activity", self.shared.state.store.activity(self.query.clone())).await.map_err(|_| StreamEnd::Store)?;
            self.query.order = ActivityOrder::Arrival { after: Some(page.arrival) };
            if !page.records.is_empty() {
                return Ok(Some(events_of(&page)));
            }
            if clock::boot_now().since(silent_since) >= FOLLOW_SILENCE_MAX {
                return Ok(Some(": still here\n\n".into()));
            }
            if !page.more {
                tokio::select! {
                    () = tokio::time::sleep(FOLLOW_POLL) => {}
                    () = stopping.cancelled() => return Ok(None),
                }
            }
        }
    }
}

/// The records of a page as events; only the last carries the id, because only there the page's arrival is passed.
fn events_of(page: &ActivityPage) -> String {
    let last = page.records.len().saturating_sub(1);
    let event = |(place, record): (usize, &AuditRecord)| {
        let id = if place == last { format!("id: {}\n", page.arrival) } else { String::new() };
        format!("{id}event: activity\ndata: {}\n\n", json_line(record))
    };
    page.records.iter().enumerate().map(event).collect()
}

/// A record as JSON, which has no line breaks: they are escaped within strings.
fn json_line(record: &AuditRecord) -> String {
    serde_json::to_string(record).expect("a record is plain data")
}

fn streamed(kind: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    // Reverse proxies of the nginx kind would gather the pieces otherwise.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let malformed = || Problem::Malformed("Last-Event-ID is not an id of this stream".into());
    let Some(line) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    line.to_str().ok().and_then(|text| text.parse().ok()).map(Some).ok_or_else(malformed)
}

/// The form of the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Page,
    Lines,
    Events,
}

impl Form {
    /// The form that Accept likes best (RFC 9110 section 12.5.1); a page where it does not care, or knows none.
    fn of(headers: &HeaderMap) -> Self {
        let lines = headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok());
        let mut best = (0, Self::Page);
        for range in lines.flat_map(|line| line.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let form = match parts.next().map(str::to_ascii_lowercase).as_deref() {
                Some("application/json") => Self::Page,
                Some(NDJSON) => Self::Lines,
                Some(EVENT_STREAM) => Self::Events,
                _ => continue,
            };
            let weight = parts.find_map(|parameter| parameter.strip_prefix("q=")).map_or(1000, thousandths);
            if weight > best.0 {
                best = (weight, form);
            }
        }
        best.1
    }
}

/// A quality value such as `0.8` in thousandths; 0 for what is none.
fn thousandths(text: &str) -> u32 {
    match text.split_once('.') {
        None => text.parse::<u32>().unwrap_or(0).min(1) * 1000,
        Some(("1", _)) => 1000,
        Some((_, fraction)) => format!("{fraction:0<3.3}").parse().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::{NonZeroU32, NonZeroU64};

    #[test]
    fn accept_decides_the_form() {
        for (accept, expected) in [
            ("", Form::Page),
            ("*/*", Form::Page),
            ("application/json", Form::Page),
            ("application/x-ndjson", Form::Lines),
            ("text/event-stream", Form::Events),
            ("Text/Event-Stream; charset=utf-8", Form::Events),
            ("application/json;q=0.5, application/x-ndjson", Form::Lines),
            ("application/json, application/x-ndjson;q=0.9", Form::Page),
            ("text/event-stream;q=0", Form::Page),
            ("application/x-ndjson;q=0.12, text/event-stream;q=0.125", Form::Events),
            ("text/html", Form::Page),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(Form::of(&headers), expected, "{accept}");
        }
    }

    #[test]
    fn only_the_last_event_of_a_page_carries_the_id() {
        let page = ActivityPage { records: vec![AuditRecord::example(1), AuditRecord::example(2)], more: false, arrival: 9 };
        let text = events_of(&page);
        assert_eq!(text.matches("event: activity\n").count(), 2);
        assert_eq!(text.matches("id: 9\n").count(), 1);
        assert!(text.find("id: 9").is_some_and(|id| text[..id].contains("\n\n")));
        let mut record = AuditRecord::example(1);
        record.user_agent = Some("a\nid: 10\r\n\r\ndata: x".into());
        assert!(!json_line(&record).contains(['\n', '\r']));
    }

    #[test]
    fn the_described_record_is_the_record() {
        use utoipa::PartialSchema;
        let mut record = AuditRecord::example(1);
        record.traceparent = Some("t".into());
        record.reason = Some("r".into());
        record.sequence = NonZeroU64::new(1);
        record.count = NonZeroU32::new(2);
        let real = serde_json::to_value(&record).expect("plain data");
        let described = serde_json::to_value(ActivityRecord::schema()).expect("plain data");
        let names =
            |value: &serde_json::Value| value.as_object().expect("an object").keys().cloned().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(names(&described["properties"]), names(&real));
    }
}

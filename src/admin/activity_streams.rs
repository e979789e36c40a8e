//! The activity log as a stream: all of it as lines, or what comes next as events.
//!
//! Lines go from newest to oldest, page after page, and stop with a broken body when the store fails in the middle.
//! Events come in the order of arrival, so that a record that comes late is not missed; after a break
//! `Last-Event-ID` goes on where it ended, and a reader removes repeats by `event_id`. Streams end with the token
//! that opened them, and when the listener drains.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::activity::{CSV, EVENT_STREAM, FileFormat, NDJSON, PAGE_RECORDS_MAX, next_place};
use super::auth::Caller;
use super::csv;
use super::followers::Following;
use super::problem::Problem;
use super::server::Shared;
use crate::clock;
use crate::domain::{AuditRecord, Timestamp};
use crate::store::{ActivityOrder, ActivityPage, ActivityQuery};

/// How often a follower looks for new records.
const FOLLOW_POLL: Duration = Duration::from_millis(200);
/// After how long a silent follower gets a comment, so that nobody on the way thinks the connection dead.
const FOLLOW_SILENCE_MAX: Duration = Duration::from_secs(15);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Why a stream ends before its end; the caller sees a body that broke off.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum StreamEnd {
    #[error("the store does not answer")]
    Store,
    #[error("the token has expired")]
    Expired,
}

/// Streams the records of a question as lines, at most `limit` of them.
pub(super) async fn lines(
    shared: &Shared,
    query: ActivityQuery,
    limit: Option<usize>,
    expires: Timestamp,
    format: FileFormat,
) -> Result<Response, Problem> {
    struct Progress {
        shared: Shared,
        query: ActivityQuery,
        /// Records that may still follow, where the caller has set a limit.
        left: Option<usize>,
        next: Option<ActivityPage>,
        head: String,
    }
    let page_size = |left: Option<usize>| left.unwrap_or(PAGE_RECORDS_MAX).clamp(1, PAGE_RECORDS_MAX);
    let query = ActivityQuery { limit: page_size(limit), ..query };
    // The first page is read before the answer begins, so that a store that is away is a 503 and not a broken body.
    let first = shared.read("activity", shared.state.store.activity(query.clone())).await?;
    let (kind, head, line): (_, _, fn(&AuditRecord) -> String) = match format {
        FileFormat::Ndjson => (NDJSON, String::new(), |record| json_line(record) + "\n"),
        FileFormat::Csv => (CSV, csv::head(), csv::line),
    };
    let progress = Progress { shared: shared.clone(), query, left: limit, next: Some(first), head };
    let pages = stream::try_unfold(progress, move |mut progress| async move {
        let Some(page) = progress.next.take() else { return Ok(None) };
        let text = page.records.iter().fold(std::mem::take(&mut progress.head), |text, record| text + &line(record));
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
    Ok(streamed(kind, Body::from_stream(pages)))
}

/// The same as a file that browsers save.
pub(super) fn to_keep(mut response: Response, format: FileFormat) -> Response {
    let ending = match format {
        FileFormat::Csv => "csv",
        FileFormat::Ndjson => "ndjson",
    };
    let day: String = clock::wall_now().to_string().chars().take("2026-11-29".len()).collect();
    let disposition = format!("attachment; filename=\"assure-pro-activity-{day}.{ending}\"");
    let value = HeaderValue::from_str(&disposition).expect("a date is ASCII");
    response.headers_mut().insert(header::CONTENT_DISPOSITION, value);
    response
}

/// Streams the records that a question admits as they come.
pub(super) async fn events(shared: &Shared, query: ActivityQuery, headers: &HeaderMap, caller: &Caller) -> Result<Response, Problem> {
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
        let draining = &self.shared.state.draining;
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
                    () = draining.cancelled() => return Ok(None),
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

#[cfg(test)]
mod tests {
    use super::*;

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
}

//! The firm's activity log: which part is asked for, in which form, and a page of it.
//!
//! `application/json` answers one page, newest first, with a cursor to the next; `application/x-ndjson`, `text/csv` and
//! `text/event-stream` are streams, see `activity_streams.rs`. The firm is the token's; a key of another firm does
//! not exist here.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, header};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::auth::{Caller, Viewer};
use super::problem::Problem;
use super::request::StrictQuery;
use super::server::Shared;
use super::{activity_streams, cursor};
use crate::domain::{AuditRecord, Timestamp};
use crate::store::{ActivityOrder, ActivityPage, ActivityPlace, ActivityQuery};

/// Records of a page where the caller does not say.
const PAGE_RECORDS: usize = 100;
/// Most records of a page.
pub(super) const PAGE_RECORDS_MAX: usize = 1000;
pub(super) const EVENT_STREAM: &str = "text/event-stream";
pub(super) const NDJSON: &str = "application/x-ndjson";
pub(super) const CSV: &str = "text/csv";

/// Which part of the log.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ReadQuery {
    /// Only this key, by its id.
    #[param(format = Uuid)]
    key: Option<String>,
    /// Only this action: `key.create`, `key.use` or `key.revoke`.
    #[param(pattern = r"^key\.(create|use|revoke)$")]
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
    #[param(min_length = 1)]
    cursor: Option<String>,
    /// A file to keep, whatever Accept says: everything that the other parameters admit, newest first.
    #[param(inline)]
    format: Option<FileFormat>,
}

/// The form of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum FileFormat {
    /// For spreadsheets.
    Csv,
    /// For programs: JSON, one record on each line.
    Ndjson,
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
    responses((status = 200, description = "A page, all records as lines (`Accept: application/x-ndjson` or `text/csv`, or `format`), or those to come (`Accept: text/event-stream`).", content(
        (Activity = "application/json"), (ActivityRecord = "application/x-ndjson"), (String = "text/csv"), (String = "text/event-stream"),
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
    if let Some(format) = asked.format {
        let file = activity_streams::lines(&shared, query, asked.limit, caller.expires(), format).await?;
        return Ok(activity_streams::to_keep(file, format));
    }
    match form {
        Form::Page => page(&shared, query).await,
        Form::Lines => activity_streams::lines(&shared, query, asked.limit, caller.expires(), FileFormat::Ndjson).await,
        Form::Csv => activity_streams::lines(&shared, query, asked.limit, caller.expires(), FileFormat::Csv).await,
        Form::Events => activity_streams::events(&shared, query, &headers, &caller).await,
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

pub(super) fn next_place(page: &ActivityPage) -> Option<ActivityPlace> {
    let last = page.records.last().filter(|_| page.more)?;
    Some(ActivityPlace { time: last.time, event: last.event_id })
}

/// The form of the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Page,
    Lines,
    Csv,
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
                Some(CSV) => Self::Csv,
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
    use http::HeaderValue;
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
            ("text/csv", Form::Csv),
            ("text/html", Form::Page),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(Form::of(&headers), expected, "{accept}");
        }
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

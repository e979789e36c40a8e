//! `activity`: the firm's log, as a table, as lines, or as it grows.

use clap::Args;
use serde_json::Value;

use super::Failure;
use super::client::{From, Server, encoded};
use super::keys::{OutputForm, items, moment, resolve, text};
use super::span::parse_since;
use super::terminal::{self, Tone, plain};
use crate::domain::{Action, KeyId, Timestamp};

/// Most records of one call to the admin API.
const PAGE_RECORDS_MAX: usize = 1000;

/// Which part of the log.
#[derive(Clone, Debug, Args)]
pub struct ActivityArguments {
    /// Only this key: its id, the beginning of its id, its prefix or its name.
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    /// Only this action: key.create, key.use or key.revoke.
    #[arg(long, value_name = "ACTION")]
    action: Option<Action>,
    /// Not before this: a span such as 10m, or a moment such as 2026-11-23T18:30:00Z.
    #[arg(long, value_name = "SINCE", value_parser = parse_since)]
    since: Option<Timestamp>,
    /// Most records.
    #[arg(long, value_name = "COUNT", default_value = "100", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Show what comes from now on, or from --since on, until interrupted.
    #[arg(long)]
    follow: bool,
    /// For programs.
    #[command(flatten)]
    form: OutputForm,
}

/// Carries out the command.
pub(super) async fn execute(server: &Server, arguments: &ActivityArguments) -> Result<(), Failure> {
    let key = match &arguments.key {
        Some(wanted) => Some(resolve(server, wanted).await?),
        None => None,
    };
    let filters = filters(arguments, key);
    if arguments.follow {
        return follow(server, arguments, &filters).await;
    }
    let mut records = Vec::new();
    let mut left = usize::try_from(arguments.limit).unwrap_or(usize::MAX);
    let mut cursor = String::new();
    while left > 0 {
        let target = format!("/v1/activity?limit={}{filters}{cursor}", left.min(PAGE_RECORDS_MAX));
        let page = server.get(&target).await?;
        let taken = items(&page, "records");
        left = left.saturating_sub(taken.len());
        records.extend(taken.iter().cloned());
        match page.get("next_cursor").and_then(Value::as_str) {
            Some(next) if !taken.is_empty() => cursor = format!("&cursor={}", encoded(next)),
            _ => break,
        }
    }
    if arguments.form.json {
        let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
        return terminal::print(&lines);
    }
    terminal::print(&terminal::table(
        ["TIME", "ACTION", "OUTCOME", "KEY", "ACTOR", "REQUEST", "STATUS", "FROM", "TOOL", "REASON"],
        &["ACTOR", "REASON", "STATUS", "TOOL", "FROM"],
        |column, text| match (column, text) {
            ("OUTCOME", "allowed") => Tone::Good,
            ("OUTCOME", _) => Tone::Alarming,
            _ => Tone::Usual,
        },
        records.iter().map(row),
    ))
}

async fn follow(server: &Server, arguments: &ActivityArguments, filters: &str) -> Result<(), Failure> {
    let query = if filters.is_empty() { String::new() } else { format!("?{}", filters.trim_start_matches('&')) };
    let from = if arguments.since.is_some() { From::Beginning } else { From::Now };
    server
        .follow(&format!("/v1/activity{query}"), from, |data| {
            if arguments.form.json {
                return terminal::print(&format!("{data}\n"));
            }
            let record: Value = serde_json::from_str(data).map_err(|_| Failure::new("the stream holds something that is not a record"))?;
            let line = line(&record);
            terminal::print(&if text(&record, "outcome") == "allowed" { line } else { terminal::alarming(line.trim_end()) + "\n" })
        })
        .await
}

fn filters(arguments: &ActivityArguments, key: Option<KeyId>) -> String {
    let one = |name: &str, value: Option<String>| value.map(|value| format!("&{name}={}", encoded(&value))).unwrap_or_default();
    [
        one("key", key.map(|key| key.to_string())),
        one("action", arguments.action.map(|action| action.to_string())),
        one("since", arguments.since.map(|since| since.to_string())),
    ]
    .concat()
}

fn row(record: &Value) -> [String; 10] {
    let is_use = text(record, "action") == "key.use";
    let request = if is_use { [text(record, "method"), text(record, "path")].join(" ") } else { String::new() };
    let count = record.get("count").map(|_| format!(" ×{}", text(record, "count"))).unwrap_or_default();
    [
        moment(&text(record, "time")),
        text(record, "action"),
        text(record, "outcome") + &count,
        text(record, "key_name"),
        if is_use { String::new() } else { text(record, "actor") },
        request,
        text(record, "status"),
        text(record, "client_ip"),
        text(record, "user_agent"),
        text(record, "reason"),
    ]
}

/// One record on one line, for a log that grows: a table's columns cannot be known ahead.
fn line(record: &Value) -> String {
    let cells: Vec<String> = row(record).into_iter().filter(|cell| !cell.is_empty()).map(|cell| plain(&cell).into_owned()).collect();
    cells.join("  ") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::AuditRecord;

    #[test]
    fn a_record_becomes_a_line_that_cannot_command_the_terminal() {
        let mut record = AuditRecord::example(1);
        record.user_agent = Some("curl\u{1b}[2J\n".into());
        let shown = line(&serde_json::to_value(&record).expect("plain data"));
        assert_eq!(shown, "2026-11-23 18:30:00  key.use  allowed  MCP server  GET /v1/clients  200  127.0.0.1  curl\\u{1b}[2J\\u{a}\n");
    }
}

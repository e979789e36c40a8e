//! `keys`: create, list, show, revoke, and say which key one is.
//!
//! Keys are named by id, by the characters that lists show, or by name, as long as only one fits. `create` writes nothing
//! but the key to standard output; `whoami` takes one from standard input, so that it is in no list of processes.

use std::io::{self, BufRead, IsTerminal, Read};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::Failure;
use super::client::{Server, encoded};
use super::terminal::{self, Answer, Tone, plain};
use crate::domain::KeyId;

/// Longest line that is read as a key, in bytes.
const KEY_LINE_BYTES_MAX: u64 = 4096;

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Create a key with your permissions and show it, this once.
    Create {
        /// What to call it, for example the tool that will use it.
        name: String,
        /// For programs.
        #[command(flatten)]
        form: OutputForm,
    },
    /// List the firm's keys.
    List {
        /// Only keys of this status.
        #[arg(long, value_enum, default_value = "all")]
        status: StatusFilter,
        /// Only keys that this user created.
        #[arg(long, value_name = "USER")]
        creator: Option<String>,
        /// For programs.
        #[command(flatten)]
        form: OutputForm,
    },
    /// Show one key.
    Show {
        /// Its id, the beginning of its id, its prefix or its name.
        id: String,
        /// For programs.
        #[command(flatten)]
        form: OutputForm,
    },
    /// Revoke a key: when this returns, nothing accepts it any more.
    Revoke {
        /// Its id, the beginning of its id, its prefix or its name.
        id: String,
        /// Why, for the log.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// For programs.
        #[command(flatten)]
        form: OutputForm,
    },
    /// Read a key from standard input and say which one it is.
    Whoami {
        /// For programs.
        #[command(flatten)]
        form: OutputForm,
    },
}

/// How to write the answer.
#[derive(Clone, Copy, Debug, Args)]
pub struct OutputForm {
    /// Write the answer as JSON, for programs.
    #[arg(long)]
    pub(super) json: bool,
}

/// Which keys to list.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum StatusFilter {
    /// Usable ones.
    Active,
    /// Revoked ones.
    Revoked,
    /// Both.
    All,
}

/// Carries out a command.
pub(super) async fn execute(server: &Server, command: KeysCommand) -> Result<(), Failure> {
    match command {
        KeysCommand::Create { name, form } => create(server, &name, form).await,
        KeysCommand::List { status, creator, form } => list(server, status, creator.as_deref(), form).await,
        KeysCommand::Show { id, form } => {
            let id = resolve(server, &id).await?;
            present(&server.get(&format!("/v1/keys/{id}")).await?, form, describe)
        }
        KeysCommand::Revoke { id, reason, yes, form } => revoke(server, &id, reason.as_deref(), yes, form).await,
        KeysCommand::Whoami { form } => whoami(server, form).await,
    }
}

async fn create(server: &Server, name: &str, form: OutputForm) -> Result<(), Failure> {
    let created = server.post("/v1/keys", &json!({ "name": name })).await?;
    if form.json {
        return present(&created, form, describe);
    }
    let key = text(&created, "key");
    terminal::remark(&format!(
        "Created the key “{}” ({}). Save it now; it is not shown again:",
        plain(&text(&created, "name")),
        text(&created, "id")
    ));
    terminal::print(&format!("{}\n", plain(&key)))
}

async fn list(server: &Server, status: StatusFilter, creator: Option<&str>, form: OutputForm) -> Result<(), Failure> {
    let status = status.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let creator = creator.map(|creator| format!("&creator={}", encoded(creator))).unwrap_or_default();
    let answer = server.get(&format!("/v1/keys?status={status}{creator}")).await?;
    present(&answer, form, |answer| {
        let limits = answer.get("limits").unwrap_or(&Value::Null);
        let summary = format!(
            "{} of {} active keys in the firm, {} of {} created by you\n",
            text(limits, "firm_active"),
            text(limits, "per_firm_max"),
            text(limits, "creator_active"),
            text(limits, "per_creator_max")
        );
        let rows = items(answer, "keys").iter().map(row);
        terminal::table(
            ["NAME", "PREFIX", "STATUS", "CREATED", "CREATOR", "LAST USED", "BY", "WARNINGS", "ID"],
            &["ID", "CREATOR", "CREATED", "BY"],
            |column, text| match (column, text) {
                ("STATUS", "active") => Tone::Good,
                ("STATUS", _) => Tone::Past,
                _ => Tone::Usual,
            },
            rows,
        ) + "\n"
            + &summary
    })
}

async fn revoke(server: &Server, wanted: &str, reason: Option<&str>, is_confirmed: bool, form: OutputForm) -> Result<(), Failure> {
    let id = resolve(server, wanted).await?;
    if !is_confirmed {
        let key = server.get(&format!("/v1/keys/{id}")).await?;
        terminal::remark(&plain(&uses(&key)));
        let question = format!("Revoke “{}”? Any script using this key will stop working.", plain(&text(&key, "name")));
        match terminal::confirm(&question)? {
            Answer::Yes => {}
            Answer::No => return Err(Failure::new("nothing was revoked")),
            Answer::NobodyThere => return Err(Failure::new(format!("{question} Nobody is there to answer; say --yes if that is meant"))),
        }
    }
    let revoked = server.post(&format!("/v1/keys/{id}/revoke"), &json!({ "reason": reason.unwrap_or_default() })).await?;
    present(&revoked, form, |revoked| {
        let replicas = revoked.get("revocation").map_or(0, |revocation| items(revocation, "replicas").len());
        format!("Revoked “{}”. No replica accepts it any more ({replicas} confirmed).\n", plain(&text(revoked, "name")))
    })
}

/// The key comes by standard input only: arguments are seen by everyone on the machine and kept in histories.
async fn whoami(server: &Server, form: OutputForm) -> Result<(), Failure> {
    let input = io::stdin();
    if input.is_terminal() {
        terminal::remark("Paste the key and press Enter:");
    }
    let mut line = Zeroizing::new(String::with_capacity(256));
    input.lock().take(KEY_LINE_BYTES_MAX).read_line(&mut line)?;
    let key = line.trim();
    if key.is_empty() {
        return Err(Failure::new("no key came by standard input"));
    }
    present(&server.post("/v1/keys/lookup", &json!({ "key": key })).await?, form, describe)
}

/// Finds the key that a person means: by id, or by what the list shows of it, if that is only one.
pub(super) async fn resolve(server: &Server, wanted: &str) -> Result<KeyId, Failure> {
    if let Ok(id) = wanted.parse() {
        return Ok(id);
    }
    let answer = server.get("/v1/keys?status=all").await?;
    choose(wanted, items(&answer, "keys"))
}

/// Shortest beginning of an id that is taken for one.
const ID_BEGINNING_CHARS_MIN: usize = 8;

fn choose(wanted: &str, keys: &[Value]) -> Result<KeyId, Failure> {
    let is_meant = |key: &&Value| {
        let begins_id = wanted.len() >= ID_BEGINNING_CHARS_MIN && text(key, "id").starts_with(&wanted.to_ascii_lowercase());
        begins_id || text(key, "prefix") == wanted || text(key, "name") == wanted
    };
    let meant: Vec<&Value> = keys.iter().filter(is_meant).collect();
    // After a rotation a revoked key may bear the same name; the live one is meant.
    let live: Vec<&Value> = meant.iter().copied().filter(|key| text(key, "status") == "active").collect();
    let meant = if live.is_empty() { meant } else { live };
    match meant.as_slice() {
        [] => Err(Failure::new(format!("no key of your firm has the id, prefix or name “{}”", plain(wanted)))),
        [key] => text(key, "id").parse().map_err(|_| Failure::new("the answer has a key without an id")),
        several => {
            let ids: Vec<String> = several.iter().map(|key| plain(&text(key, "id")).into_owned()).collect();
            Err(Failure::new(format!("“{}” means {} keys; name one by its id: {}", plain(wanted), several.len(), ids.join(", "))))
        }
    }
}

/// Writes the answer itself for programs, or what it says for people.
pub(super) fn present(answer: &Value, form: OutputForm, describe: impl FnOnce(&Value) -> String) -> Result<(), Failure> {
    if form.json {
        let text = serde_json::to_string_pretty(answer).expect("an answer is plain data");
        return terminal::print(&(text + "\n"));
    }
    terminal::print(&describe(answer))
}

/// A member as text; empty where it is absent or null.
pub(super) fn text(value: &Value, name: &str) -> String {
    match value.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

/// A member's items; none where it is absent or not an array.
pub(super) fn items<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn row(key: &Value) -> [String; 9] {
    [
        text(key, "name"),
        text(key, "prefix") + "…",
        text(key, "status"),
        moment(&text(key, "created_at")),
        creator(key),
        moment(&text(key, "last_used_at")),
        text(key, "last_used_by"),
        joined(items(key, "warnings")),
        text(key, "id"),
    ]
}

fn creator(key: &Value) -> String {
    let name = text(key, "creator_name");
    if name.is_empty() { text(key, "creator") } else { name }
}

fn joined(list: &[Value]) -> String {
    let words: Vec<String> = list.iter().filter_map(Value::as_str).map(|word| word.replace('_', " ")).collect();
    words.join(", ")
}

/// A moment to the second; the microseconds are for programs.
pub(super) fn moment(text: &str) -> String {
    match text.split_once('.') {
        Some((seconds, _)) => seconds.replacen('T', " ", 1),
        None => text.to_owned(),
    }
}

fn describe(key: &Value) -> String {
    let rows = [
        ("name", text(key, "name")),
        ("id", text(key, "id")),
        ("prefix", text(key, "prefix") + "…"),
        ("status", text(key, "status")),
        ("firm", text(key, "firm_id")),
        ("creator", if text(key, "creator_status") == "left" { creator(key) + " (has left)" } else { creator(key) }),
        ("created", moment(&text(key, "created_at"))),
        ("last used", moment(&text(key, "last_used_at"))),
        ("by", text(key, "last_used_by")),
        ("from", text(key, "last_used_from")),
        ("uses in 24 h", text(key, "uses_24h")),
        ("used with", seen_with(key)),
        ("revoked", moment(&text(key, "revoked_at"))),
        ("revoked by", text(key, "revoked_by")),
        ("reason", text(key, "revoke_reason")),
        ("warnings", joined(items(key, "warnings"))),
        ("permissions", listed(key, "permissions")),
        ("creator lacks", listed(key, "creator_lacks")),
    ];
    let shown = rows.iter().filter(|(_, value)| !value.is_empty());
    shown.map(|(name, value)| format!("{name:<13} {}\n", plain(value))).collect()
}

/// A member's texts, one after the other.
fn listed(value: &Value, name: &str) -> String {
    items(value, name).iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
}

/// What a key was used with in the last 30 days.
fn seen_with(key: &Value) -> String {
    let seen = key.get("seen_with").unwrap_or(&Value::Null);
    [listed(seen, "tools"), listed(seen, "networks")].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(", from ")
}

/// What decides whether a key can go: its last use, and how much and with what it is used.
fn uses(key: &Value) -> String {
    let last = moment(&text(key, "last_used_at"));
    if last.is_empty() {
        return "It was never used.".to_owned();
    }
    format!("Last used {last}; {} uses in the last 24 hours; seen with {}.", text(key, "uses_24h"), seen_with(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u128, name: &str, status: &str) -> Value {
        let id = uuid::Uuid::from_u128(id).to_string();
        json!({ "id": id, "name": name, "prefix": format!("assure_0000{}", &id[32..]), "status": status })
    }

    #[test]
    fn a_key_is_found_by_what_the_list_shows_if_that_is_only_one() {
        let keys = [
            key(1, "MCP server", "active"),
            key(2, "Excel", "active"),
            key(3, "Excel", "active"),
            key(4, "MCP server", "revoked"),
            key(5, "Old", "revoked"),
        ];
        let chosen = |wanted: &str| choose(wanted, &keys).ok().map(|id| id.uuid().as_u128());
        assert_eq!(chosen("MCP server"), Some(1));
        assert_eq!(chosen("Old"), Some(5));
        assert_eq!(chosen("assure_00000002"), Some(2));
        assert_eq!(chosen("00000000-0000-0000-0000-000000000003"), Some(3));
        for wanted in ["Excel", "00000000", "mcp server", "MCP", "", "0"] {
            assert_eq!(chosen(wanted), None, "{wanted}");
        }
    }

    #[test]
    fn what_is_shown_cannot_command_the_terminal() {
        let mut evil = key(1, "a\u{1b}[31mb", "active");
        evil["last_used_by"] = "curl\u{7}".into();
        assert!(!describe(&evil).contains(['\u{1b}', '\u{7}']));
        assert_eq!(moment("2026-11-23T18:30:00.000010Z"), "2026-11-23 18:30:00");
    }
}

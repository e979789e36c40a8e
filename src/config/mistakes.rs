//! What is wrong with a configuration, told so that the operator can mend it without asking.
//!
//! Every mistake names file, line and field, shows the line, and says what would be right. The text shown is always
//! the one that stands in the file: a value that came from the environment or another file is never repeated, because
//! it may be a secret; what stands before the `@` of an address is hidden for the same reason, and of the store's address
//! all, since a password that was not escaped has no end that anybody could find.

use std::fmt;
use std::path::PathBuf;

use super::document::{Spot, SyntaxError};
use super::position::{self, Part, Place};

/// Longest source line shown, in characters: a line of a terminal or two; what was minified into one line ends here.
const SHOWN_CHARS_MAX: usize = 160;
/// The field whose value is never shown.
const STORE_URL: &str = "store.redis.url";

/// One mistake in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where in the file, counted from 1; absent when the mistake is of the whole file.
    pub line: Option<usize>,
    /// Where in the line, in characters counted from 1.
    pub column: Option<usize>,
    /// Path of the field, `routes[3].require`; empty when the file is not YAML at all.
    pub field: String,
    /// The offending text as written.
    pub text: String,
    /// The line as written.
    pub source: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl Mistake {
    pub(super) fn of(text: &str, finding: &Finding) -> Self {
        let place = position::place(text, &finding.spot, finding.part);
        Self::at(text, place, finding.spot.to_string(), finding.problem.clone())
    }

    pub(super) fn of_syntax(text: &str, error: SyntaxError) -> Self {
        Self::at(text, error.place, String::new(), error.problem)
    }

    fn at(text: &str, place: Option<Place>, field: String, problem: String) -> Self {
        let secret_from =
            place.as_ref().filter(|_| field.starts_with(STORE_URL)).map_or(usize::MAX, |place| place.column.saturating_sub(1));
        let source = place.as_ref().map(|place| hide_after(secret_from, position::source_line(text, place.line))).unwrap_or_default();
        Self {
            line: place.as_ref().map(|place| place.line),
            column: place.as_ref().map(|place| place.column),
            text: place
                .map(|place| if secret_from == usize::MAX { hide_after(secret_from, &place.text) } else { hide_after(0, &place.text) })
                .unwrap_or_default(),
            field,
            source,
            problem,
        }
    }

    /// The source line with its number, and a line of carets under the offending text.
    fn write_frame(&self, out: &mut fmt::Formatter<'_>, line: usize) -> fmt::Result {
        let number = line.to_string();
        let source: String = self.source.chars().map(printable).take(SHOWN_CHARS_MAX).collect();
        write!(out, "\n  {number} | {}", source.trim_end())?;
        let before = self.column.unwrap_or(1).saturating_sub(1);
        if before < source.trim_end().chars().count() {
            let rest: String = self.source.chars().skip(before).collect();
            let carets = self.shown_width(&rest).min(SHOWN_CHARS_MAX - before);
            write!(out, "\n  {:width$} | {:before$}{}", "", "", "^".repeat(carets), width = number.len())?;
        }
        Ok(())
    }

    /// How many characters the offending text takes in its line, quotes included.
    fn shown_width(&self, rest: &str) -> usize {
        let unquoted = rest.trim_start_matches(['"', '\'']);
        let quotes = 2 * (rest.chars().count() - unquoted.chars().count()).min(1);
        let is_here = !self.text.is_empty() && unquoted.starts_with(&self.text);
        if is_here { self.text.chars().count() + quotes } else { 1 }
    }
}

/// All mistakes of one file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes {
    /// The file.
    pub file: PathBuf,
    /// At least one, in the order of the file.
    pub list: Vec<Mistake>,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, mistake) in self.list.iter().enumerate() {
            if number > 0 {
                out.write_str("\n")?;
            }
            write!(out, "{}", self.file.display())?;
            if let Some(line) = mistake.line {
                write!(out, ":{line}")?;
            }
            if !mistake.field.is_empty() {
                write!(out, ": {}", mistake.field)?;
            }
            write!(out, ": {}", mistake.problem)?;
            if let Some(line) = mistake.line {
                mistake.write_frame(out, line)?;
            }
        }
        Ok(())
    }
}

/// A mistake before its place in the text has been looked up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Finding {
    pub(super) spot: Spot,
    pub(super) part: Part,
    pub(super) problem: String,
}

/// The candidate that was probably meant: alike but for case and separators, or a typing error or two away.
pub(super) fn nearest<'c>(written: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let written = bare(written);
    let allowed = (written.chars().count() / 3).clamp(1, 3);
    let scored = candidates.into_iter().map(|candidate| (edit_distance(&written, &bare(candidate)), candidate));
    scored.filter(|(distance, _)| *distance <= allowed).min_by_key(|(distance, _)| *distance).map(|(_, candidate)| candidate)
}

/// `did you mean X?`, or all that is possible.
pub(super) fn suggestion(written: &str, candidates: &[&str]) -> String {
    match nearest(written, candidates.iter().copied()) {
        Some(candidate) => format!("did you mean `{candidate}`?"),
        None if candidates.is_empty() => "there are none here".to_owned(),
        None => format!("possible here: {}", candidates.join(", ")),
    }
}

fn bare(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// Insertions, deletions, replacements and swaps of neighbours (optimal string alignment).
fn edit_distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=other.len()).collect()];
    let cell =
        |rows: &[Vec<usize>], row: usize, column: usize| rows.get(row).and_then(|row| row.get(column)).copied().unwrap_or(usize::MAX);
    for (row, from) in one.iter().enumerate() {
        let mut next = vec![row + 1];
        for (column, into) in other.iter().enumerate() {
            let replaced = cell(&rows, row, column) + usize::from(from != into);
            let shorter = cell(&rows, row, column + 1).min(next.last().copied().unwrap_or(0)) + 1;
            let is_swap = row > 0 && column > 0 && one.get(row - 1) == Some(into) && other.get(column - 1) == Some(from);
            let swapped = if is_swap { cell(&rows, row - 1, column - 1) + 1 } else { usize::MAX };
            next.push(replaced.min(shorter).min(swapped));
        }
        rows.push(next);
    }
    cell(&rows, one.len(), other.len())
}

/// Tabs and control characters would move the carets or the terminal's cursor.
fn printable(c: char) -> char {
    if c == '\t' {
        ' '
    } else if c.is_control() {
        char::REPLACEMENT_CHARACTER
    } else {
        c
    }
}

/// Replaces all from `secret_from` on, in characters, or from where the store's address may begin, by as many asterisks,
/// so that columns stay right; before that, users and passwords.
fn hide_after(secret_from: usize, line: &str) -> String {
    let given = line.char_indices().nth(secret_from).map_or(line.len(), |(at, _)| at);
    let (shown, secret) = line.split_at_checked(given.min(store_url(line))).unwrap_or(("", line));
    hide_users(shown) + &"*".repeat(secret.trim_end().chars().count())
}

/// Where the store's address begins in a line, at the earliest: at its scheme, or after `url:` without another scheme.
fn store_url(line: &str) -> usize {
    let line = line.to_ascii_lowercase();
    let scheme = ["redis://", "rediss://"].into_iter().filter_map(|scheme| line.find(scheme));
    let values = line.match_indices("url").filter_map(|(at, word)| {
        let (before, after) = (line.get(..at)?, line.get(at + word.len()..)?);
        let value = after.trim_start_matches(['"', '\'']).trim_start().strip_prefix(':')?.trim_start().trim_start_matches(['"', '\'']);
        let is_word = !before.ends_with(|c: char| c.is_alphanumeric() || "_-".contains(c));
        let is_page = value.starts_with("http://") || value.starts_with("https://");
        (is_word && !is_page).then_some(line.len() - value.len())
    });
    scheme.chain(values).min().unwrap_or(line.len())
}

/// Replaces user and password of every address by as many asterisks. Both end at the last `@`, since a `/` may stand in
/// a password that was not escaped.
fn hide_users(line: &str) -> String {
    let mut shown = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("://") {
        let end = after.find(char::is_whitespace).unwrap_or(after.len());
        let (authority, remaining) = after.split_at_checked(end).unwrap_or((after, ""));
        shown.push_str(before);
        shown.push_str("://");
        match authority.rsplit_once('@') {
            Some((user, host)) => {
                shown.push_str(&"*".repeat(user.chars().count()));
                shown.push('@');
                shown.push_str(host);
            }
            None => shown.push_str(authority),
        }
        rest = remaining;
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_or_none() {
        let fields = ["listen", "tls", "trusted_proxies", "proxy_protocol", "connections_max"];
        let rows = [
            ("lisen", Some("listen")),
            ("Listen", Some("listen")),
            ("trustedProxies", Some("trusted_proxies")),
            ("trusted-proxy", Some("trusted_proxies")),
            ("tsl", Some("tls")),
            ("lisetn", Some("listen")),
            ("tl", Some("tls")),
            ("max_connections", None),
            ("zzz", None),
        ];
        for (written, wanted) in rows {
            assert_eq!(nearest(written, fields), wanted, "{written}");
        }
    }

    #[test]
    fn users_in_addresses_are_hidden() {
        assert_eq!(hide_users("- https://u:p@host:1/0 # see http://x@y"), "- https://***@host:1/0 # see http://*@y");
        assert_eq!(hide_users("https://u:a/b@c@host/d"), "https://*******@host/d");
        assert_eq!(hide_users("plain a@b"), "plain a@b");
    }

    #[test]
    fn nothing_of_the_stores_address_is_shown() {
        for address in
            ["redis://gw:AAaa/BBbb+CC=@h:6379", "REDISS://:AAaa@h", "gw:AAaa/BBbb@h:6379", "\":AAaa BBbb@h\"", "AAaa", "${U}:AAaa@h"]
        {
            let configs = [
                format!("store:\n  redis:\n    url: {address}\n    sentinel: {{ nodes: [a:1], master: m }}\n"),
                format!("store:\n  redis:\n    url: {address}\n    cluster: {{ nodes: [a:1] }}\n"),
                format!("store:\n  redis:\n    \"url\" : {address}\n    url: {address}\n"),
                format!("store: {{ redis: {{ partitions: 0, url: {address} , lease: AAaa }} }}\n"),
                format!("store: {{ redis: {{ url: {address}, url: [ }} }}\n"),
                format!("store:\n  redis: {{ url: {address} }}\n  embedded: {{}}\n"),
            ];
            for config in configs {
                let told = crate::config::parse(std::path::Path::new("a.yaml"), &config).expect_err(&config).to_string();
                assert!(!told.contains("AAaa") && !told.contains("BBbb"), "{config}{told}");
            }
        }
        assert_eq!(hide_after(usize::MAX, "  url: :pass@h"), "  url: *******");
        assert_eq!(hide_after(usize::MAX, "{ public_url: x, url: https://u@h }"), "{ public_url: x, url: https://*@h }");
        assert_eq!(hide_after(usize::MAX, "redis: redis://h"), "redis: *********");
    }

    #[test]
    fn a_mistake_reads_as_file_line_field_and_shows_the_line() {
        let mistake = Mistake {
            line: Some(12),
            column: Some(9),
            field: "edge.listen".into(),
            text: "80".into(),
            source: "listen: \"80\"".into(),
            problem: "expected an address".into(),
        };
        let whole = Mistake { line: None, column: None, ..mistake.clone() };
        let text = Mistakes { file: "a.yaml".into(), list: vec![mistake, whole] }.to_string();
        let wanted = "\
a.yaml:12: edge.listen: expected an address
  12 | listen: \"80\"
     |         ^^^^
a.yaml: edge.listen: expected an address";
        assert_eq!(text, wanted);
    }
}

//! Records as lines of comma-separated values (RFC 4180), for spreadsheets.
//!
//! Names, paths and tools are what others chose. A cell that a spreadsheet would take for a formula gets an apostrophe
//! before it; every cell is quoted. The file begins with a byte order mark, without which Excel misreads what is not ASCII.

use serde_json::Value;

use crate::domain::AuditRecord;

/// The columns, as the contract names the fields.
const COLUMNS: [&str; 17] = [
    "time",
    "action",
    "outcome",
    "key_name",
    "key_prefix",
    "actor",
    "method",
    "path",
    "status",
    "client_ip",
    "user_agent",
    "reason",
    "count",
    "route",
    "request_id",
    "key_id",
    "event_id",
];

/// The first line.
pub(super) fn head() -> String {
    format!("\u{feff}{}", line_of(COLUMNS.into_iter().map(str::to_owned)))
}

/// A record.
pub(super) fn line(record: &AuditRecord) -> String {
    let fields = serde_json::to_value(record).expect("a record is plain data");
    line_of(COLUMNS.into_iter().map(|name| fields.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()))
}

fn line_of(cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<String> = cells.map(|cell| quoted(&cell)).collect();
    cells.join(",") + "\r\n"
}

fn quoted(cell: &str) -> String {
    let is_formula = cell.trim_start().starts_with(['=', '+', '-', '@', '\t', '\r']) || cell.starts_with(['\t', '\r', '\n']);
    let guard = if is_formula { "'" } else { "" };
    format!("\"{guard}{}\"", cell.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_a_formula_and_none_ends_early() {
        for (cell, expected) in [
            ("MCP server", "\"MCP server\""),
            ("=HYPERLINK(\"http://x\")", "\"'=HYPERLINK(\"\"http://x\"\")\""),
            ("+1", "\"'+1\""),
            ("-1", "\"'-1\""),
            ("@a", "\"'@a\""),
            (" =a", "\"' =a\""),
            ("\t=a", "\"'\t=a\""),
            ("a=b, \"c\"\r\nd", "\"a=b, \"\"c\"\"\r\nd\""),
            ("", "\"\""),
        ] {
            assert_eq!(quoted(cell), expected);
        }
    }

    #[test]
    fn a_record_has_as_many_cells_as_the_head() {
        let mut record = AuditRecord::example(1);
        record.key_name = "=cmd|'/c calc'!A1".into();
        let (head, line) = (head(), line(&record));
        assert!(head.starts_with("\u{feff}\"time\",\"action\"") && line.contains("\"'=cmd|'/c calc'!A1\""));
        assert_eq!((head.matches("\",\"").count(), line.matches("\",\"").count()), (COLUMNS.len() - 1, COLUMNS.len() - 1));
    }
}

//! What goes to the terminal: text that cannot command it, tables, questions.
//!
//! Names and user agents come from others; a control character among them could hide, move or overwrite what the
//! reader sees, so it is written as an escape.

use std::borrow::Cow;
use std::io::{self, BufRead, IsTerminal, Write};

use comfy_table::Table;

use super::Failure;

/// Longest answer to a question, in bytes.
const ANSWER_BYTES_MAX: u64 = 1024;

/// The text with control characters, and those that change the direction of text, escaped.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_commanding) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if is_commanding(character) { out.extend(character.escape_unicode()) } else { out.push(character) }
    }
    Cow::Owned(out)
}

fn is_commanding(character: char) -> bool {
    character.is_control() || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Writes what was asked for to standard output.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Writes a remark to standard error. A closed one cannot be told of.
pub(super) fn remark(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A table with a head and without lines, for people.
pub(super) fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(head);
    for row in rows {
        table.add_row(row.iter().map(|cell| plain(cell).into_owned()));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
    lines.concat()
}

/// Asks a question that is answered with yes or no; no where nobody is there to answer.
pub(super) fn confirm(question: &str) -> Result<Answer, Failure> {
    let input = io::stdin();
    if !input.is_terminal() {
        return Ok(Answer::NobodyThere);
    }
    write!(io::stderr(), "{question} [y/N] ")?;
    let mut answer = String::new();
    io::Read::take(input.lock(), ANSWER_BYTES_MAX).read_line(&mut answer)?;
    Ok(if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") { Answer::Yes } else { Answer::No })
}

/// The answer to a question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// Do it.
    Yes,
    /// Leave it.
    No,
    /// Standard input is not a terminal.
    NobodyThere,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_cannot_command_the_terminal() {
        assert_eq!(plain("MCP “server” é 🙂"), "MCP “server” é 🙂");
        assert_eq!(plain("a\u{1b}[2Jb\u{202e}c\r\n"), "a\\u{1b}[2Jb\\u{202e}c\\u{d}\\u{a}");
        let table = table(["NAME"], [["a\u{1b}]0;x\u{7}".to_owned()]].into_iter());
        assert!(!table.contains('\u{1b}') && table.contains("NAME\n"), "{table}");
    }
}

//! What goes to the terminal: text that cannot command it, tables as wide as it is, colours only where they are seen, questions.
//!
//! Names and user agents come from others; a control character among them could hide, move or overwrite what the
//! reader sees, so it is written as an escape.

use std::borrow::Cow;
use std::io::{self, BufRead, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table};

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

/// How a text is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tone {
    /// As any other.
    Usual,
    /// Green: all is well.
    Good,
    /// Red: somebody was refused.
    Alarming,
    /// Dim: over and done with.
    Past,
}

impl Tone {
    /// Where the text begins, as a terminal is told (ECMA-48 section 8.3.117) and as it is marked until lines have been made:
    /// by a character of no width, which [`plain`] leaves to nobody else.
    fn begin(self) -> Option<(&'static str, char)> {
        match self {
            Self::Usual => None,
            Self::Good => Some(("\u{1b}[32m", '\u{200b}')),
            Self::Alarming => Some(("\u{1b}[31m", '\u{200c}')),
            Self::Past => Some(("\u{1b}[2m", '\u{200e}')),
        }
    }

    fn marked(self, text: &str) -> String {
        self.begin().map_or_else(|| text.to_owned(), |(_, mark)| format!("{mark}{text}{END_MARK}"))
    }
}

/// Where any tone ends.
const END: &str = "\u{1b}[0m";
const END_MARK: char = '\u{200f}';

/// Whether colours are seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Colours {
    Seen,
    Unseen,
}

fn colours() -> Colours {
    match anstream::AutoStream::choice(&io::stdout()) {
        anstream::ColorChoice::Never => Colours::Unseen,
        _ => Colours::Seen,
    }
}

/// A text in red, where colours are seen.
pub(super) fn alarming(text: &str) -> String {
    if colours() == Colours::Seen { painted(&Tone::Alarming.marked(text)) } else { text.to_owned() }
}

/// A line with colours for its marks; without any where a tone began or ended on another line.
fn painted(line: &str) -> String {
    let begins: Vec<(&str, char)> = [Tone::Good, Tone::Alarming, Tone::Past].into_iter().filter_map(Tone::begin).collect();
    let count = |wanted: &dyn Fn(char) -> bool| line.chars().filter(|character| wanted(*character)).count();
    let is_whole = count(&|character| begins.iter().any(|(_, mark)| *mark == character)) == count(&|character| character == END_MARK);
    let mut out = line.to_owned();
    for (colour, mark) in begins.into_iter().chain([(END, END_MARK)]) {
        out = out.replace(mark, if is_whole { colour } else { "" });
    }
    out
}

/// A table with a head and without lines, for people; `tone` says by a column's name and a cell's text how that is meant, which
/// is seen where colours are. On a terminal that is too narrow, columns that can be spared are
/// left out one by one, the first first; what is still too wide is broken within its cells.
pub(super) fn table<const N: usize>(
    head: [&str; N],
    spared: &[&str],
    tone: impl Fn(&str, &str) -> Tone,
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let width = rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col)).filter(|width| *width > 0);
    let rows = shown(colours(), head, tone, rows);
    fitted(width, head, spared, &rows)
}

/// Cells as they are laid out: nothing in them commands, and their tone is marked.
fn shown<const N: usize>(
    colours: Colours,
    head: [&str; N],
    tone: impl Fn(&str, &str) -> Tone,
    rows: impl Iterator<Item = [String; N]>,
) -> Vec<[String; N]> {
    let cell = |column: &str, text: &str| {
        let tone = if colours == Colours::Seen { tone(column, text) } else { Tone::Usual };
        tone.marked(&plain(text))
    };
    rows.map(|mut row| {
        row.iter_mut().zip(head).for_each(|(text, column)| *text = cell(column, text));
        row
    })
    .collect()
}

fn fitted<const N: usize>(width: Option<usize>, head: [&str; N], spared: &[&str], rows: &[[String; N]]) -> String {
    for count in 0..=spared.len() {
        let left_out = spared.get(..count).unwrap_or_default();
        let is_shown = |place: usize| head.get(place).is_some_and(|name| !left_out.contains(name));
        let mut table = Table::new();
        table
            .load_style(comfy_table::presets::NOTHING)
            .set_header(head.iter().enumerate().filter(|(place, _)| is_shown(*place)).map(|(_, name)| *name));
        for row in rows {
            table.add_row(row.iter().enumerate().filter(|(place, _)| is_shown(*place)).map(|(_, cell)| cell));
        }
        if let (Some(width), true) = (width, count == spared.len()) {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(u16::try_from(width).unwrap_or(u16::MAX));
        }
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        let long = |line: &String| line.chars().filter(|character| !is_commanding(*character)).count();
        let is_fitting = width.is_none_or(|width| lines.iter().all(|line| long(line) <= width));
        if is_fitting || count == spared.len() {
            return lines.iter().flat_map(|line| [painted(line), "\n".to_owned()]).collect();
        }
    }
    String::new()
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
        let table = table(["NAME"], &[], |_, _| Tone::Alarming, [["a\u{1b}]0;x\u{7}".to_owned()]].into_iter());
        assert!(!table.contains('\u{1b}') && table.contains("NAME\n"), "{table}");
    }

    #[test]
    fn colours_change_no_width_and_end_on_the_line_where_they_began() {
        let head = ["NAME", "STATUS", "ID"];
        let tone = |column: &str, text: &str| match (column, text) {
            ("STATUS", "active") => Tone::Good,
            ("STATUS", "revoked") => Tone::Past,
            ("STATUS", _) => Tone::Alarming,
            _ => Tone::Usual,
        };
        let rows = || {
            [["active", "active", "1"], ["b", "revoked", "2"], ["c", "permission_missing", "3"]]
                .map(|row| row.map(str::to_owned))
                .into_iter()
        };
        let drawn = |colours, width| fitted(width, head, &[], &shown(colours, head, tone, rows()));
        let (bare, coloured) = (drawn(Colours::Unseen, None), drawn(Colours::Seen, None));
        assert!(!bare.contains('\u{1b}') && bare.contains("active  active  "), "{bare}");
        let expected = bare
            .replace("active  active ", "active  \u{1b}[32mactive\u{1b}[0m ")
            .replace("revoked", "\u{1b}[2mrevoked\u{1b}[0m")
            .replace("permission_missing", "\u{1b}[31mpermission_missing\u{1b}[0m");
        assert_eq!(coloured, expected);
        for width in [24, 22, 18] {
            let narrow = drawn(Colours::Seen, Some(width));
            assert!(narrow.lines().all(|line| line.matches("\u{1b}[").count() % 2 == 0), "{narrow}");
            assert!(!narrow.contains(['\u{200b}', '\u{200c}', '\u{200e}', '\u{200f}']));
        }
    }

    #[test]
    fn a_table_is_as_wide_as_the_terminal_and_loses_first_what_can_be_spared() {
        let rows = [["MCP server".to_owned(), "over a year old, never used".to_owned(), "0199d3a0-0000-7000-8000-000000000000".to_owned()]];
        let fit = |width| fitted(width, ["NAME", "WARNINGS", "ID"], &["ID"], &rows);
        assert!(fit(None).contains("0199d3a0-") && fit(Some(120)) == fit(None));
        let narrow = fit(Some(50));
        assert!(!narrow.contains("ID") && narrow.contains("over a year old, never used"), "{narrow}");
        for width in [20, 30, 40] {
            let broken = fit(Some(width));
            assert!(broken.lines().all(|line| line.chars().count() <= width) && broken.contains("MCP"), "{broken}");
        }
    }
}

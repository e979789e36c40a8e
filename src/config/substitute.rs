//! `${VAR}`, `${VAR:-default}` and `${file:PATH}` inside text values.
//!
//! It happens after the YAML has been read, so a value that contains `: `, `#` or a line break stays a value and
//! cannot become structure. A scalar that is one reference and nothing else may become a number or a bool, where the
//! field wants one. `$${` writes `${`. What took a reference's place may be secret: no problem sentence repeats it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::document::{Node, Spot};
use super::mistakes::Finding;
use super::position::Part;

/// Largest file that `${file:PATH}` may name, in bytes: room for any secret or certificate chain, and a slip like
/// `${file:/dev/zero}` ends.
const FILE_BYTES_MAX: u64 = 64 * 1024;

const FORMS: &str = "a reference is ${VAR}, ${VAR:-default} or ${file:PATH}; write $${ for the characters themselves";

/// Where the values come from.
pub(super) struct Sources<'a> {
    /// The environment; in tests a table.
    pub(super) variable: &'a dyn Fn(&str) -> Option<String>,
    /// What relative file paths start from: the folder of the configuration.
    pub(super) folder: &'a Path,
    /// The files that were named, readable or not: their content is part of the configuration.
    pub(super) files: Vec<PathBuf>,
}

/// Replaces every reference below `root`; what cannot be replaced is taken out and told.
pub(super) fn substitute(root: &mut Node, sources: &mut Sources<'_>, findings: &mut Vec<Finding>) {
    let before = findings.len();
    walk(root, &Spot::default(), sources, findings);
    for finding in findings.iter().skip(before) {
        root.prune(&finding.spot);
    }
}

fn walk(node: &mut Node, spot: &Spot, sources: &mut Sources<'_>, findings: &mut Vec<Finding>) {
    if let Node::Text(text) = node {
        match replace(text, sources) {
            Ok(replaced) => *node = replaced,
            Err(problem) => findings.push(Finding { spot: spot.clone(), part: Part::Value, problem }),
        }
        return;
    }
    let spots: Vec<Spot> = node.children().iter().map(|child| spot.child(child, node)).collect();
    for (child, spot) in node.children_mut().into_iter().flatten().zip(&spots) {
        walk(&mut child.node, spot, sources, findings);
    }
}

fn replace(text: &str, sources: &mut Sources<'_>) -> Result<Node, String> {
    let mut replaced = String::new();
    let mut rest = text;
    let mut references = 0_usize;
    while let Some(dollar) = rest.find('$') {
        let (plain, from) = rest.split_at(dollar);
        replaced.push_str(plain);
        if let Some(after) = from.strip_prefix("$${") {
            replaced.push_str("${");
            rest = after;
        } else if let Some(after) = from.strip_prefix("${") {
            let (reference, after) = after.split_once('}').ok_or_else(|| format!("this reference has no end; {FORMS}"))?;
            replaced.push_str(&resolve(reference, sources)?);
            references += 1;
            rest = after;
        } else {
            replaced.push('$');
            rest = from.get(1..).unwrap_or("");
        }
    }
    replaced.push_str(rest);
    let is_one_reference = references == 1 && text.starts_with("${") && text.find('}') == text.len().checked_sub(1);
    Ok(if is_one_reference { Node::Replaced(replaced) } else { Node::Text(replaced) })
}

/// The value of what stands between the braces.
fn resolve(reference: &str, sources: &mut Sources<'_>) -> Result<String, String> {
    if let Some(path) = reference.strip_prefix("file:") {
        let path = sources.folder.join(path);
        sources.files.push(path.clone());
        return read_file(&path);
    }
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    if !is_variable_name(name) {
        return Err(FORMS.to_owned());
    }
    // As in a shell, `:-` also stands in for a variable that is set to nothing.
    match ((sources.variable)(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(format!("the environment variable {name} is not set (or is not UTF-8); set it, or write ${{{name}:-default}}")),
    }
}

fn is_variable_name(name: &str) -> bool {
    !name.starts_with(|first: char| first.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn read_file(path: &Path) -> Result<String, String> {
    let mut content = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut content));
    let length = read.map_err(|error| format!("the file {} cannot be read: {error}", path.display()))?;
    if u64::try_from(length).is_ok_and(|length| length > FILE_BYTES_MAX) {
        return Err(format!("the file {} is larger than {FILE_BYTES_MAX} bytes", path.display()));
    }
    // Editors and `echo` end a file with a line break that is not part of the value.
    if content.ends_with('\n') {
        content.pop();
        if content.ends_with('\r') {
            content.pop();
        }
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replaced(text: &str, folder: &Path) -> Result<Node, String> {
        let variable = |name: &str| match name {
            "PORT" => Some("8080".to_owned()),
            "HOST" => Some("::1 # x: y".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        replace(text, &mut Sources { variable: &variable, folder, files: Vec::new() })
    }

    #[test]
    fn references_are_replaced_inside_text() {
        let folder = Path::new("/nowhere");
        let rows = [
            ("plain", Node::Text("plain".into())),
            ("${PORT}", Node::Replaced("8080".into())),
            ("a${PORT}", Node::Text("a8080".into())),
            ("${PORT}${PORT}", Node::Text("80808080".into())),
            ("${HOST}", Node::Replaced("::1 # x: y".into())),
            ("${NONE:-5s}", Node::Replaced("5s".into())),
            ("${EMPTY:-5s}", Node::Replaced("5s".into())),
            ("${EMPTY}", Node::Replaced(String::new())),
            ("${NONE:-}", Node::Replaced(String::new())),
            ("$${PORT}", Node::Text("${PORT}".into())),
            ("$$", Node::Text("$$".into())),
            ("cost: $5, ${PORT}", Node::Text("cost: $5, 8080".into())),
        ];
        for (text, wanted) in rows {
            assert_eq!(replaced(text, folder), Ok(wanted), "{text}");
        }
        for text in ["${", "${PORT", "${}", "${1A}", "${A-B}", "${:-x}", "${A:x}"] {
            assert!(replaced(text, folder).is_err_and(|problem| problem.contains("${VAR:-default}")), "{text}");
        }
        assert!(replaced("${NONE}", folder).is_err_and(|problem| problem.contains("variable NONE is not set")));
    }

    #[test]
    fn files_are_read_from_the_folder_of_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("one"), "secret\n").unwrap();
        std::fs::write(folder.path().join("two"), "secret\r\n\r\n").unwrap();
        std::fs::write(folder.path().join("large"), "x".repeat(65_537)).unwrap();
        std::fs::write(folder.path().join("full"), "x".repeat(65_536)).unwrap();
        assert_eq!(replaced("${file:one}", folder.path()), Ok(Node::Replaced("secret".into())));
        assert_eq!(replaced("${file:two}", folder.path()), Ok(Node::Replaced("secret\r\n".into())));
        assert!(replaced("${file:full}", folder.path()).is_ok());
        assert!(replaced("${file:large}", folder.path()).is_err_and(|problem| problem.contains("larger than 65536")));
        assert!(replaced("${file:none}", folder.path()).is_err_and(|problem| problem.contains("cannot be read")));
    }
}

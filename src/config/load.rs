//! From a file to a configuration that has been checked as a whole, or to all its mistakes.
//!
//! The steps: find the file, read it, parse the YAML, refuse repeated keys, put values in the place of `${...}`, read
//! the fields into their types, check what the types cannot. A mistake in one step does not hide those of the next,
//! except that a text which is no YAML has only that one mistake. The environment is read here and nowhere else.
//! Relative paths in the file start at the working directory, those inside `${file:...}` at the file's own folder.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::Config;
use super::check;
use super::decode::decode;
use super::document::{self, Node, Spot};
use super::mistakes::Finding;
pub use super::mistakes::{Mistake, Mistakes};
use super::position::{Part, place};
use super::substitute::{Sources, substitute};

/// Largest configuration, in bytes: thousands of routes, and a slip like `--config /dev/zero` ends.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The variable that names the file.
const FILE_VARIABLE: &str = "ASSURE_GATEWAY_CONFIG";

/// The file that is used when none is named.
const FILE_DEFAULT: &str = "config/gateway.yaml";

/// The configuration that is used where there is none.
const BUILT_IN: &str = include_str!("../../config/gateway.yaml");

/// The endpoint behind which the demo's upstream is, in this process.
pub const DEMO_ENDPOINT: &str = "demo://";

/// Why no configuration could be had.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{0}: {1}")]
    Unreadable(PathBuf, std::io::Error),
    /// The file has mistakes.
    #[error(transparent)]
    Mistaken(#[from] Mistakes),
}

/// Where the configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// No file: the built-in demo.
    Demo,
}

/// Finds the file to use: the argument, then `$ASSURE_GATEWAY_CONFIG`, then `config/gateway.yaml` where it exists, else
/// the demo. A file that was named is used whether it exists or not, so that a misspelt name is an error and no demo.
pub fn find(argument: Option<&Path>) -> Source {
    let named = std::env::var_os(FILE_VARIABLE).filter(|name| !name.is_empty()).map(PathBuf::from);
    find_among(argument.map(Path::to_path_buf).or(named), Path::new(FILE_DEFAULT))
}

fn find_among(named: Option<PathBuf>, default: &Path) -> Source {
    match named {
        Some(file) => Source::File(file),
        None if default.exists() => Source::File(default.to_path_buf()),
        None => Source::Demo,
    }
}

/// Reads, substitutes and checks a file.
///
/// # Errors
/// When it cannot be read, and with all its mistakes when it has any.
pub fn load(file: &Path) -> Result<Config, ConfigError> {
    read(file).result
}

/// Reads, substitutes and checks what [`find`] found; the demo is the shipped configuration, as it was built in.
///
/// # Errors
/// As [`load`].
pub fn load_source(source: &Source) -> Result<Config, ConfigError> {
    match source {
        Source::File(file) => load(file),
        Source::Demo => Ok(parse(Path::new(FILE_DEFAULT), BUILT_IN)?),
    }
}

/// The same from a text that was read already; `name` stands in messages, and `${file:...}` starts at its folder.
///
/// # Errors
/// With all mistakes of the text.
pub fn parse(name: &Path, text: &str) -> Result<Config, Mistakes> {
    parse_with(name, text, &environment).0
}

/// The JSON Schema of the configuration.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Config).to_value()
}

/// What reading a file gave, and which other files it depends on.
pub(super) struct Reading {
    pub(super) result: Result<Config, ConfigError>,
    /// The files named by `${file:...}`, readable or not.
    pub(super) named: Vec<PathBuf>,
}

pub(super) fn read(file: &Path) -> Reading {
    match read_text(file) {
        Ok(text) => {
            let (result, named) = parse_with(file, &text, &environment);
            Reading { result: result.map_err(ConfigError::from), named }
        }
        Err(error) => Reading { result: Err(ConfigError::Unreadable(file.to_path_buf(), error)), named: Vec::new() },
    }
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn read_text(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let length = File::open(file)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if u64::try_from(length).is_ok_and(|length| length > FILE_BYTES_MAX) {
        return Err(std::io::Error::other(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

fn parse_with(name: &Path, text: &str, variable: &dyn Fn(&str) -> Option<String>) -> (Result<Config, Mistakes>, Vec<PathBuf>) {
    let mistaken = |list| Mistakes { file: name.to_path_buf(), list };
    let mut root = match document::read(text) {
        Ok(root) => root,
        Err(error) => return (Err(mistaken(vec![Mistake::of_syntax(text, error)])), Vec::new()),
    };
    let mut findings = Vec::new();
    refuse_repeated_keys(&mut root, &mut findings, text);
    let mut sources = Sources { variable, folder: name.parent().unwrap_or(Path::new("")), files: Vec::new() };
    substitute(&mut root, &mut sources, &mut findings);
    let config = decode(&mut root, &mut findings);
    let more = check::check(&config, text, &root, &findings);
    findings.extend(more);
    if findings.is_empty() {
        return (Ok(config), sources.files);
    }
    let mut list: Vec<Mistake> = findings.iter().map(|finding| Mistake::of(text, finding)).collect();
    list.sort_by_key(|mistake| (mistake.line, mistake.column));
    (Err(mistaken(list)), sources.files)
}

/// The second of two equal keys would silently win in most readers; here neither operator nor reviewer has to guess.
fn refuse_repeated_keys(root: &mut Node, findings: &mut Vec<Finding>, text: &str) {
    let mut repeated = Vec::new();
    collect_repeated_keys(root, &Spot::default(), &mut repeated);
    for (first, second) in repeated {
        let line = place(text, &first, Part::Key).map_or(0, |place| place.line);
        let problem = format!("this field stands here twice, first on line {line}; keep one");
        root.prune(&second);
        findings.push(Finding { spot: second, part: Part::Key, problem });
    }
}

fn collect_repeated_keys(node: &Node, spot: &Spot, repeated: &mut Vec<(Spot, Spot)>) {
    for (number, child) in node.children().iter().enumerate() {
        let here = spot.child(child, node);
        let is_mapping = matches!(node, Node::Mapping(_));
        match node.children().iter().take(number).find(|earlier| is_mapping && earlier.key == child.key) {
            Some(first) => repeated.push((spot.child(first, node), here)),
            None => collect_repeated_keys(&child.node, &here, repeated),
        }
    }
}

#[cfg(test)]
mod tests;

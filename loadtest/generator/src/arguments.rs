//! Words of the command line: `--name value` pairs and nothing else.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::str::FromStr;

/// What was said, by name.
pub struct Arguments(HashMap<String, String>);

impl Arguments {
    /// Reads pairs; a name without `--` or without a value is a mistake.
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut pairs = HashMap::new();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").ok_or_else(|| format!("{word:?} does not begin with --"))?;
            let value = words.next().ok_or_else(|| format!("--{name} has no value"))?;
            pairs.insert(name.to_owned(), value);
        }
        Ok(Self(pairs))
    }

    /// The text of an argument that may be left out.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// An argument that may be left out, read as something.
    pub fn maybe<T: FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        self.text(name).map(|text| text.parse().map_err(|_| format!("--{name}: {text:?} cannot be read"))).transpose()
    }

    /// An argument with a value for when it is left out.
    pub fn or<T: FromStr>(&self, name: &str, default: T) -> Result<T, String> {
        Ok(self.maybe(name)?.unwrap_or(default))
    }

    /// A loopback address: this tool talks to this machine and to no other.
    pub fn loopback(&self, name: &str) -> Result<SocketAddr, String> {
        let address: SocketAddr = self.maybe(name)?.ok_or_else(|| format!("--{name} is missing"))?;
        if address.ip().is_loopback() { Ok(address) } else { Err(format!("--{name}: {address} is not on loopback")) }
    }
}

//! A script and how it is called: by its hash, and where a server does not know that yet, by its body.

use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind};

/// A script, known to a Redis by its hash once it has seen the body.
pub(super) struct Script {
    body: String,
    hash: String,
}

impl Script {
    pub(super) fn new(body: &str) -> Self {
        let body = crate::mutants::script(body.to_owned());
        Self { hash: redis::Script::new(&body).get_hash().to_owned(), body }
    }

    /// The call for a server that has seen it. `known` is the data set that it must find; it takes that off first.
    pub(super) fn by_hash(&self, keys: &[String], arguments: &[String], known: &str) -> Cmd {
        spelt("EVALSHA", &self.hash, keys, arguments, known)
    }

    /// The same with the body, and with the same keys, so that in a Cluster it reaches the server that did not know the hash.
    pub(super) fn by_body(&self, keys: &[String], arguments: &[String], known: &str) -> Cmd {
        spelt("EVAL", &self.body, keys, arguments, known)
    }
}

/// Whether a server has not seen the body yet, or was told to forget it.
pub(super) fn is_unknown(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

fn spelt(command: &str, script: &str, keys: &[String], arguments: &[String], known: &str) -> Cmd {
    let mut call = redis::cmd(command);
    call.arg(script).arg(keys.len()).arg(keys).arg(arguments).arg(known);
    call
}

//! What every script begins with, and how it is called: by its hash, and where a server does not know that yet, by its body.

use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, ToRedisArgs};

use super::schema::SCHEMA;

/// Which life of the store answers: the process, and the history that it continues. A server that took another's data
/// and leads again without having been started anew has another replication id.
pub(super) const INCARNATION: &str = r"
local function incarnation()
  local function told(section, name) return string.match(redis.call('INFO', section), name .. ':(%w+)') or '' end
  return told('server', 'run_id') .. ' ' .. told('replication', 'master_replid')
end
";

/// What every script but RENEW begins with. Its last argument is the data set that is known (see `identity`); where
/// another one is, or another layout, nothing is read and nothing is written.
const GUARD: &str = r"
local known = table.remove(ARGV)
if known ~= '' then
  local home = string.match(KEYS[1], '^[^}]*}:')
  local found = redis.call('MGET', home .. 'store', home .. 'schema')
  if found[1] ~= known then return redis.error_reply('OTHERSTORE this is not the data set that is known here') end
  if found[2] ~= layout then return redis.error_reply('OTHERLAYOUT another version has changed the layout') end
end
";

pub(super) fn guarded(script: &str) -> Script {
    Script::new(&format!("local layout = '{SCHEMA}'\n{GUARD}{INCARNATION}{script}"))
}

/// The arguments of a script that takes none.
pub(super) const NONE: &[String] = &[];

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
    pub(super) fn by_hash(&self, keys: &[String], arguments: &[impl ToRedisArgs], known: &str) -> Cmd {
        spelt("EVALSHA", &self.hash, keys, arguments, known)
    }

    /// The same with the body, and with the same keys, so that in a Cluster it reaches the server that did not know the hash.
    pub(super) fn by_body(&self, keys: &[String], arguments: &[impl ToRedisArgs], known: &str) -> Cmd {
        spelt("EVAL", &self.body, keys, arguments, known)
    }
}

/// Whether a server has not seen the body yet, or was told to forget it.
pub(super) fn is_unknown(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

fn spelt(command: &str, script: &str, keys: &[String], arguments: &[impl ToRedisArgs], known: &str) -> Cmd {
    let mut call = redis::cmd(command);
    call.arg(script).arg(keys.len()).arg(keys).arg(arguments).arg(known);
    call
}

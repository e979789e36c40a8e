//! What an error of Redis means to an operator: Redis's own words, escaped, and what to do about it where that is known.

use redis::RedisError;

/// What an error's text has in it, and what helps. The first that fits is said.
const ADVICE: [(&str, &str); 13] = [
    ("WRONGPASS", "user or password is wrong: see store.redis.url and store.redis.password_file"),
    ("NOAUTH", "Redis wants a password: see store.redis.url and store.redis.password_file"),
    // What a call of many words is told before anybody has signed in.
    ("unauthenticated", "Redis wants a password: see store.redis.url and store.redis.password_file"),
    ("AuthenticationFailed", "user or password is wrong: see store.redis.url and store.redis.password_file"),
    ("NOPERM", "this Redis user may not do what a gateway needs: see its ACL"),
    ("DB index is out of range", "Redis has no database of the number in store.redis.url; see databases in its settings"),
    ("READONLY", "this Redis is a replica and takes no writes: store.redis must lead to the primary"),
    ("MASTERDOWN", "this Redis is a replica that has lost its primary"),
    ("LOADING", "Redis is reading its data from disk; it answers when that is done"),
    ("OOM", "Redis has reached its maxmemory: give it more, or let it keep less (audit.stream_max_age)"),
    ("MISCONF", "Redis cannot write to its disk and takes no writes until it can"),
    ("timed out", "no answer in time: Redis is stalled or overloaded, or something between here and there swallows what is sent"),
    ("Connection refused", "nothing listens at the address in store.redis"),
];

/// The error in words that may stand in a log: a server's own words are bytes from outside.
pub(super) fn explained(error: &RedisError) -> String {
    let text = error.to_string();
    match error.code() {
        // The library has names of its own for the codes that it knows.
        Some(code) if !text.contains(code) => advised(&format!("{code} {text}")),
        _ => advised(&text),
    }
}

fn advised(words: &str) -> String {
    let own = words.escape_debug();
    match ADVICE.iter().find(|(sign, _)| words.contains(sign)) {
        Some((_, advice)) => format!("{own} ({advice})"),
        None => own.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_reads_what_to_do_and_no_raw_bytes() {
        assert_eq!(
            advised("OOM: command not allowed when used memory > 'maxmemory'."),
            "OOM: command not allowed when used memory > \\'maxmemory\\'. (Redis has reached its maxmemory: give it more, or let it keep less (audit.stream_max_age))"
        );
        assert_eq!(advised("ERR\u{1b}[2J"), "ERR\\u{1b}[2J");
    }
}

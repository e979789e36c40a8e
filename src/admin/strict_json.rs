//! JSON that can be read in one way only.
//!
//! Two members of the same name in one object are refused, because parsers differ in which of them counts
//! (RFC 8259 section 4): what a proxy or a log saw must be what was acted upon. Anything but an object is refused, because
//! serde would read a list as the members in the order of their declaration. Unknown members are left to the
//! target types' `deny_unknown_fields`, invalid UTF-8 and lone surrogates to serde_json, depth to its limit of 128.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Reads one JSON object that holds nothing twice.
///
/// # Errors
/// Says what is wrong and where, without repeating values.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    let explain = |error: serde_json::Error| match error.classify() {
        serde_json::error::Category::Data => error.to_string(),
        _ => format!("not valid JSON, line {} column {}", error.line(), error.column()),
    };
    if !text.trim_ascii_start().starts_with(b"{") {
        return Err("it is not a JSON object".into());
    }
    let mut reader = serde_json::Deserializer::from_slice(text);
    NothingTwice.deserialize(&mut reader).map_err(explain)?;
    reader.end().map_err(explain)?;
    serde_json::from_slice(text).map_err(|error| without_values(&error, explain))
}

/// A message of serde may quote what was sent ("invalid type: string \"…\""), and what was sent may be a key.
fn without_values(error: &serde_json::Error, explain: impl Fn(serde_json::Error) -> String) -> String {
    let text = error.to_string();
    if text.starts_with("unknown field") || text.starts_with("missing field") {
        return explain(serde::de::Error::custom(text));
    }
    format!("a member has the wrong type, line {} column {}", error.line(), error.column())
}

struct NothingTwice;

impl<'de> DeserializeSeed<'de> for NothingTwice {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NothingTwice {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("JSON")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(NothingTwice)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(name) = members.next_key::<String>()? {
            if !seen.insert(name) {
                return Err(A::Error::custom("an object has two members of the same name"));
            }
            members.next_value_seed(NothingTwice)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for text in [
            r#"{"a":1,"a":2}"#,
            r#"{"a":{"b":1,"b":1}}"#,
            r#"[{"a":1},{"c":[{"a":1,"\u0061":2}]}]"#,
            r#"{"a":1} {"a":1}"#,
            "[]",
            "[1]",
            "null",
            "7",
            r#"{"a":"\ud800"}"#,
            "{\"a\":\"\u{0}\"}",
            "{'a':1}",
            "",
            "{",
        ] {
            assert!(parse::<Value>(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse::<Value>(b"{\"a\":\"\xff\"}").is_err());
        assert!(parse::<Value>("[".repeat(200).as_bytes()).is_err());
        assert!(parse::<Value>(br#"{"a":{"a":[1,-1,1.5,true,null,"x"]}}"#).is_ok());
    }

    #[test]
    fn messages_do_not_repeat_values() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Known {
            #[expect(dead_code, reason = "only its type matters")]
            key: u32,
        }
        let message = parse::<Known>(br#"{"key":"assure_secret"}"#).expect_err("a wrong type");
        assert!(!message.contains("secret"), "{message}");
        let message = parse::<Known>(br#"{"key":1,"firm_id":2}"#).expect_err("an unknown member");
        assert!(message.contains("firm_id"), "{message}");
    }
}

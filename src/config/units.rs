//! Sizes and spans as operators write them: `10MiB`, `250ms`, `400d`.
//!
//! Strict on purpose: one spelling per unit, no spaces, no fractions, no signs, no leading zeros, so that what an
//! operator reads is what the gateway does. What does not fit its number type is an error and never wraps. `Display`
//! writes the shortest form that reads back as the same value. Whether a value makes sense where it stands (more
//! than zero, at most a minute) is for `check`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};

/// Sizes, largest first: the order in which `Display` tries them. KB, MB, GB and TB are powers of 1000, the others of 1024.
const SIZE_UNITS: [(&str, u64); 8] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
];

/// Spans in milliseconds, largest first.
const SPAN_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

const SIZE_WANTED: &str = "a size like 10MiB, 10MB or 65536";
const SPAN_WANTED: &str = "a span like 250ms, 3s, 1m, 2h or 30d";
const OPTIONAL_SPAN_WANTED: &str = "a span like 250ms, 3s, 1m, 2h or 30d, or null";
const SYNC_WANTED: &str = "`always`, or a span like 250ms, 3s, 1m, 2h or 30d";

/// Why a text is no size or span; a sentence that says what would be one. It never repeats the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnitError {
    /// Not the form of a size.
    #[error("expected {SIZE_WANTED}")]
    NotASize,
    /// Not the form of a span.
    #[error("expected {SPAN_WANTED}")]
    NotASpan,
    /// Neither `always` nor a span.
    #[error("expected {SYNC_WANTED}")]
    NotASync,
    /// More than 64 bits of bytes.
    #[error("this size is too large: the largest is 18446744073709551615 bytes")]
    SizeTooLarge,
    /// More than 64 bits of milliseconds.
    #[error("this span is too long: the longest is 18446744073709551615ms")]
    SpanTooLong,
}

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ByteCount(pub u64);

impl FromStr for ByteCount {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = split(text).ok_or(UnitError::NotASize)?;
        let factor = if unit.is_empty() { 1 } else { factor_of(&SIZE_UNITS, unit).ok_or(UnitError::NotASize)? };
        multiply(number, factor).map(Self).ok_or(UnitError::SizeTooLarge)
    }
}

impl fmt::Display for ByteCount {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_shortest(out, self.0, &SIZE_UNITS)
    }
}

impl Serialize for ByteCount {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteCount {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(SizeVisitor)
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = ByteCount;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(SIZE_WANTED)
    }

    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteCount, E> {
        Ok(ByteCount(bytes))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteCount, E> {
        text.parse().map_err(E::custom)
    }
}

impl JsonSchema for ByteCount {
    fn schema_name() -> Cow<'static, str> {
        "ByteCount".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A size: 10MiB (1024), 10MB (1000), or a plain number of bytes.",
            "oneOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": "^(0|[1-9][0-9]*)([KMGT]i?B)?$" }
            ]
        })
    }
}

/// How often the spool is forced to disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sync {
    /// Before each request is forwarded.
    Always,
    /// At this interval.
    Every(Duration),
}

impl FromStr for Sync {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text == "always" {
            return Ok(Self::Always);
        }
        parse_span(text).map(Self::Every).map_err(|error| if error == UnitError::NotASpan { UnitError::NotASync } else { error })
    }
}

impl Serialize for Sync {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Always => out.serialize_str("always"),
            Self::Every(interval) => span::serialize(interval, out),
        }
    }
}

impl<'de> Deserialize<'de> for Sync {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_str(TextVisitor { wanted: SYNC_WANTED, parse: str::parse })
    }
}

impl JsonSchema for Sync {
    fn schema_name() -> Cow<'static, str> {
        "Sync".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "`always`, or how often: 250ms, 3s, 1m.",
            "type": "string",
            "pattern": "^(always|(0|[1-9][0-9]*)(ms|s|m|h|d))$"
        })
    }
}

/// Stands in the JSON Schema wherever a field is a span.
pub(super) struct Span;

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A span of time: 250ms, 3s, 1m, 2h or 30d.",
            "type": "string",
            "pattern": "^(0|[1-9][0-9]*)(ms|s|m|h|d)$"
        })
    }
}

/// Reads `250ms`, `3s`, `1m`, `2h` or `30d`.
///
/// # Errors
/// [`UnitError::NotASpan`] and [`UnitError::SpanTooLong`].
pub(super) fn parse_span(text: &str) -> Result<Duration, UnitError> {
    let (number, unit) = split(text).ok_or(UnitError::NotASpan)?;
    let factor = factor_of(&SPAN_UNITS, unit).ok_or(UnitError::NotASpan)?;
    multiply(number, factor).map(Duration::from_millis).ok_or(UnitError::SpanTooLong)
}

/// A span in a field, for `#[serde(with)]`.
pub(super) mod span {
    use super::*;

    pub(in crate::config) fn serialize<S: Serializer>(value: &Duration, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(&SpanText::of(*value).ok_or_else(|| ser::Error::custom("a span counts whole milliseconds"))?)
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
        input.deserialize_str(TextVisitor { wanted: SPAN_WANTED, parse: parse_span })
    }
}

/// A span or null in a field, for `#[serde(with)]`.
pub(super) mod optional_span {
    use super::*;

    pub(in crate::config) fn serialize<S: Serializer>(value: &Option<Duration>, out: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => span::serialize(value, out),
            None => out.serialize_none(),
        }
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Duration>, D::Error> {
        input.deserialize_option(OptionalSpanVisitor)
    }
}

struct OptionalSpanVisitor;

impl<'de> Visitor<'de> for OptionalSpanVisitor {
    type Value = Option<Duration>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(OPTIONAL_SPAN_WANTED)
    }

    fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, input: D) -> Result<Self::Value, D::Error> {
        input.deserialize_str(TextVisitor { wanted: OPTIONAL_SPAN_WANTED, parse: parse_span }).map(Some)
    }
}

/// A text field that `parse` reads; anything that is no text is answered with what is wanted.
struct TextVisitor<T> {
    wanted: &'static str,
    parse: fn(&str) -> Result<T, UnitError>,
}

impl<T> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.wanted)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(|error| match error {
            UnitError::NotASpan => E::custom(format_args!("expected {}", self.wanted)),
            other => E::custom(other),
        })
    }
}

/// A span that has whole milliseconds, in the form that operators write.
struct SpanText(u64);

impl SpanText {
    fn of(value: Duration) -> Option<Self> {
        let millis = u64::try_from(value.as_millis()).ok()?;
        (Duration::from_millis(millis) == value).then_some(Self(millis))
    }
}

impl fmt::Display for SpanText {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            // A span without a unit would not read back.
            return out.write_str("0s");
        }
        write_shortest(out, self.0, &SPAN_UNITS)
    }
}

/// Splits `10MiB` into `10` and `MiB`; `None` unless it begins with a number in its plain form.
fn split(text: &str) -> Option<(&str, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let is_plain = number == "0" || (!number.is_empty() && !number.starts_with('0'));
    is_plain.then_some((number, unit))
}

fn factor_of(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor)
}

/// `None` when the number or the product needs more than 64 bits.
fn multiply(number: &str, factor: u64) -> Option<u64> {
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn write_shortest(out: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)]) -> fmt::Result {
    match units.iter().find(|(_, factor)| value != 0 && value.is_multiple_of(*factor)) {
        Some((name, factor)) => write!(out, "{}{name}", value / factor),
        None => write!(out, "{value}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_as_written_or_refused_with_a_sentence() {
        let good = [
            ("0", 0),
            ("65536", 65_536),
            ("10MiB", 10 << 20),
            ("10MB", 10_000_000),
            ("64KiB", 65_536),
            ("64KB", 64_000),
            ("1GiB", 1 << 30),
            ("3TB", 3_000_000_000_000),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in good {
            assert_eq!(text.parse(), Ok(ByteCount(bytes)), "{text}");
        }
        for text in ["", "MiB", "10 MiB", " 10MiB", "10mib", "10M", "10kB", "-1", "+1", "1.5MiB", "010", "1e6", "10MiB ", "٣"] {
            assert_eq!(text.parse::<ByteCount>(), Err(UnitError::NotASize), "{text}");
        }
        for text in ["18446744073709551616", "18446744073709551615KB", "99999999999999999999TiB"] {
            assert_eq!(text.parse::<ByteCount>(), Err(UnitError::SizeTooLarge), "{text}");
        }
        assert_eq!(UnitError::NotASize.to_string(), "expected a size like 10MiB, 10MB or 65536");
    }

    #[test]
    fn spans_are_read_as_written_or_refused_with_a_sentence() {
        let good = [("250ms", 250), ("3s", 3_000), ("1m", 60_000), ("2h", 7_200_000), ("30d", 2_592_000_000), ("0s", 0)];
        for (text, millis) in good {
            assert_eq!(parse_span(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "3", "0", "s", "3 s", "3S", "3sec", "-3s", "1.5s", "03s", "1m30s", "1w"] {
            assert_eq!(parse_span(text), Err(UnitError::NotASpan), "{text}");
        }
        assert_eq!(parse_span("99999999999999d"), Err(UnitError::SpanTooLong));
        assert_eq!(UnitError::NotASpan.to_string(), "expected a span like 250ms, 3s, 1m, 2h or 30d");
    }

    #[test]
    fn sync_is_always_or_a_span() {
        assert_eq!("always".parse(), Ok(Sync::Always));
        assert_eq!("1s".parse(), Ok(Sync::Every(Duration::from_secs(1))));
        assert_eq!("never".parse::<Sync>(), Err(UnitError::NotASync));
    }

    #[test]
    fn a_span_below_a_millisecond_is_not_written_as_something_else() {
        let mut text = Vec::new();
        let mut out = serde_json::Serializer::new(&mut text);
        assert!(span::serialize(&Duration::from_micros(1), &mut out).is_err());
    }

    proptest! {
        #[test]
        fn sizes_read_back(bytes: u64, factor in prop::sample::select(SIZE_UNITS.map(|(_, factor)| factor).to_vec())) {
            for value in [bytes, bytes / factor * factor] {
                let written = ByteCount(value).to_string();
                prop_assert_eq!(written.parse(), Ok(ByteCount(value)));
                let json = serde_json::to_string(&ByteCount(value)).unwrap();
                prop_assert_eq!(serde_json::from_str::<ByteCount>(&json).unwrap(), ByteCount(value));
            }
        }

        #[test]
        fn spans_read_back(millis: u64, factor in prop::sample::select(SPAN_UNITS.map(|(_, factor)| factor).to_vec())) {
            for value in [millis, millis / factor * factor] {
                let sync = Sync::Every(Duration::from_millis(value));
                let json = serde_json::to_string(&sync).unwrap();
                prop_assert_eq!(serde_json::from_str::<Sync>(&json).unwrap(), sync);
            }
        }

        #[test]
        fn no_text_makes_a_parser_panic(text: String) {
            let _ = text.parse::<ByteCount>();
            let _ = parse_span(&text);
        }
    }
}

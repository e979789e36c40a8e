//! Spans and moments as people type them on the command line: `10m`, `12h`, `30d`, `2026-11-23T18:30:00Z`.

use std::time::Duration;

use crate::clock;
use crate::domain::Timestamp;

/// Reads a whole number with `s`, `m`, `h` or `d`.
pub(super) fn parse_span(text: &str) -> Result<Duration, String> {
    let explain = || format!("{text:?} is not a span such as 30s, 10m, 12h or 7d");
    let unit_place = text.len().checked_sub(1).ok_or_else(explain)?;
    let (number, unit) = text.split_at_checked(unit_place).ok_or_else(explain)?;
    let number: u64 = number.parse().map_err(|_| explain())?;
    let unit_seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(explain()),
    };
    let seconds = number.checked_mul(unit_seconds).filter(|seconds| *seconds > 0).ok_or_else(explain)?;
    Ok(Duration::from_secs(seconds))
}

/// Reads a moment, or a span that counts back from now.
pub(super) fn parse_since(text: &str) -> Result<Timestamp, String> {
    if let Ok(span) = parse_span(text) {
        return Ok(clock::wall_now().minus(span));
    }
    text.parse().map_err(|_| format!("{text:?} is neither a span such as 10m nor a moment such as 2026-11-23T18:30:00Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_a_number_and_a_unit() {
        assert_eq!(parse_span("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_span("7d"), Ok(Duration::from_secs(7 * 86_400)));
        for text in ["", "m", "10", "0s", "-1s", "1w", "1 m", "10é", "99999999999999999999d", "9999999999999999999d"] {
            assert!(parse_span(text).is_err(), "{text}");
        }
        assert!(parse_since("2026-11-23T18:30:00Z").is_ok() && parse_since("yesterday").is_err());
    }
}

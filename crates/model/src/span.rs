//! Durations as people write them: `40ms`, `1h30m`. The same in the config file, the environment, flags and policies.

use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration; write one like 40ms, 10s, 5m, 2h or 7d")]
pub struct BadSpan(pub String);

/// Milliseconds in one of each unit, the longest names first so that `ms` is not read as `m`.
const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// One or more numbers with a unit each: `1h30m`. `0` needs no unit.
pub fn parse(text: &str) -> Result<Duration, BadSpan> {
    let bad = || BadSpan(text.to_owned());
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(bad());
    }
    let mut total_ms = 0u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, tail) = rest.split_at(digits);
        let (unit, ms) = UNITS.iter().find(|(unit, _)| tail.starts_with(unit)).ok_or_else(bad)?;
        let number: u64 = number.parse().map_err(|_| bad())?;
        total_ms = number.checked_mul(*ms).and_then(|n| total_ms.checked_add(n)).ok_or_else(bad)?;
        rest = &tail[unit.len()..];
    }
    Ok(Duration::from_millis(total_ms))
}

/// What `parse` reads as the same, to the millisecond: `1h30m`.
pub fn show(span: Duration) -> String {
    let mut left = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let mut out = String::new();
    for (unit, ms) in [UNITS[4], UNITS[3], UNITS[2], UNITS[1], UNITS[0]] {
        if left >= ms {
            out.push_str(&format!("{}{unit}", left / ms));
            left %= ms;
        }
    }
    if out.is_empty() { "0".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_as_the_same() {
        for ms in [0, 1, 999, 1_000, 61_001, 3_600_000, 5_400_000, 604_800_000, 604_861_002] {
            let span = Duration::from_millis(ms);
            assert_eq!(parse(&show(span)), Ok(span), "{}", show(span));
        }
        assert_eq!(show(Duration::from_secs(5400)), "1h30m");
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", " ", "10", "h", "1x", "1h30", "-1s", "99999999999999999999s", "18446744073709551615d"] {
            assert_eq!(parse(text), Err(BadSpan(text.to_owned())), "{text:?}");
        }
    }
}

//! Durations and sizes as people write them: `40ms`, `1h30m`, `64MiB`. The same in the config file, the environment and flags.

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error("{0:?} is not a size; write one like 512, 64KiB, 64MiB or 2GiB")]
    Size(String),
}

const SIZES: [(&str, u64); 10] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
    ("", 1),
];

pub use isle_model::span::parse as duration;

/// A number of bytes with at most one unit.
pub fn size(text: &str) -> Result<u64, UnitError> {
    let bad = || UnitError::Size(text.to_owned());
    let (number, unit) = leading_number(text.trim()).ok_or_else(bad)?;
    let (_, bytes) = SIZES.iter().find(|(name, _)| *name == unit.trim_start()).ok_or_else(bad)?;
    number.checked_mul(*bytes).ok_or_else(bad)
}

fn leading_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

/// A size for people: `1.5 MiB`.
pub fn show_size(bytes: u64) -> String {
    const NAMES: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step = (63u32.saturating_sub(bytes.max(1).leading_zeros()) / 10).min(4) as usize;
    match step {
        0 => format!("{bytes} B"),
        _ => format!("{:.1} {}", bytes as f64 / (1u64 << (10 * step)) as f64, NAMES[step]),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    #[test]
    fn durations_are_read() {
        assert_eq!(duration("40ms").unwrap(), Duration::from_millis(40));
        assert_eq!(duration("1h30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(duration("7d").unwrap(), Duration::from_secs(7 * 86_400));
        assert_eq!(duration("0").unwrap(), Duration::ZERO);
    }

    #[test]
    fn what_is_not_a_duration_is_refused() {
        for text in ["", "40", "ms", "-1s", "1.5s", "1y", "99999999999999999999s", "18446744073709551615d"] {
            assert!(duration(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(size("512").unwrap(), 512);
        assert_eq!(size("64MiB").unwrap(), 64 << 20);
        assert_eq!(size("2 GB").unwrap(), 2_000_000_000);
        for text in ["", "MiB", "1.5MiB", "1 mib", "99999999TiB"] {
            assert!(size(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn sizes_are_shown() {
        assert_eq!(show_size(0), "0 B");
        assert_eq!(show_size(1023), "1023 B");
        assert_eq!(show_size(1536), "1.5 KiB");
        assert_eq!(show_size(64 << 20), "64.0 MiB");
    }
}

//! Time, as a part handed in: wall time for stamps, monotonic time for lag and staleness.
//!
//! Nothing else of the node reads the ambient clock, so that a simulation may bend it; waiting is done by `tokio::time`.

use std::time::Duration;

pub trait Clock: Send + Sync {
    /// Milliseconds since the Unix epoch. May jump, both ways.
    fn wall_ms(&self) -> u64;
    /// Time since some fixed moment. Never runs backwards.
    fn monotonic(&self) -> Duration;
}

/// By how much a clock is ahead of most others, given how far it is ahead of each; zero if there are none. Pure.
pub(crate) fn ahead_of_most(mut ahead_ms: Vec<i64>) -> u64 {
    ahead_ms.sort_unstable_by_key(|ahead| std::cmp::Reverse(*ahead));
    // At least so far ahead of everybody up to this one, and they are more than half.
    ahead_ms.get(ahead_ms.len() / 2).map_or(0, |ahead| u64::try_from(*ahead).unwrap_or(0))
}

/// The machine's clock.
#[derive(Debug)]
pub struct SystemClock {
    origin: std::time::Instant,
}

impl SystemClock {
    // The one place where the ambient clock is read: everything else takes a `Clock`.
    #[allow(clippy::disallowed_methods)]
    pub fn new() -> Self {
        SystemClock { origin: std::time::Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    // The one place where the ambient clock is read: everything else takes a `Clock`.
    #[allow(clippy::disallowed_methods)]
    fn wall_ms(&self) -> u64 {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        // A clock before 1970 counts as 1970: stamps only break ties.
        since_epoch.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
    }

    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ahead_of_most_is_ahead_of_more_than_half() {
        assert_eq!(ahead_of_most(vec![]), 0);
        assert_eq!(ahead_of_most(vec![900]), 900);
        assert_eq!(ahead_of_most(vec![-900]), 0);
        assert_eq!(ahead_of_most(vec![900, 0]), 0);
        assert_eq!(ahead_of_most(vec![900, 0, 800]), 800);
        assert_eq!(ahead_of_most(vec![900, 0, 800, -5]), 0);
    }
}

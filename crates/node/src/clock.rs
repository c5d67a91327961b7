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

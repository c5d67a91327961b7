//! What may be tried again, and when. Pure: the caller brings the randomness.

use std::time::Duration;

use tonic::Code;

use crate::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// How often a call is made in all.
    pub attempts_max: u32,
    pub backoff_min: Duration,
    pub backoff_max: Duration,
}

impl Default for Retry {
    /// About two seconds in all: a restart of a node, not an outage.
    fn default() -> Self {
        Retry { attempts_max: 6, backoff_min: Duration::from_millis(50), backoff_max: Duration::from_secs(1) }
    }
}

impl Retry {
    pub fn never() -> Retry {
        Retry { attempts_max: 1, ..Retry::default() }
    }

    /// How long to wait before attempt `attempt + 1`, or `None` to give up. `jitter` is in [0, 1).
    pub(crate) fn wait(&self, error: &Error, read: bool, attempt: u32, jitter: f64) -> Option<Duration> {
        let passing = matches!(error.code, Code::Unavailable | Code::ResourceExhausted);
        // A read has no effect, so its unknown outcome harms nobody.
        let harmless = read || !error.outcome_unknown();
        if !passing || !harmless || attempt >= self.attempts_max {
            return None;
        }
        let doubled = self.backoff_min.saturating_mul(1 << (attempt - 1).min(16)).min(self.backoff_max);
        // Half of it is jitter: clients that failed together must not return together.
        let wait = doubled.mul_f64(0.5 + jitter / 2.0);
        Some(wait.max(error.retry_after.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{OUTCOME_UNKNOWN, UNREACHABLE};

    fn error(code: Code, reason: &str) -> Error {
        Error::local(code, reason, String::new())
    }

    #[test]
    fn a_write_is_repeated_only_if_it_was_surely_not_done() {
        let retry = Retry::default();
        assert!(retry.wait(&error(Code::Unavailable, UNREACHABLE), false, 1, 0.0).is_some());
        assert_eq!(retry.wait(&error(Code::Unavailable, OUTCOME_UNKNOWN), false, 1, 0.0), None);
        assert!(retry.wait(&error(Code::Unavailable, OUTCOME_UNKNOWN), true, 1, 0.0).is_some());
        assert_eq!(retry.wait(&error(Code::InvalidArgument, "INVALID_FIELD"), true, 1, 0.0), None);
    }

    #[test]
    fn waits_grow_and_end() {
        let retry = Retry::default();
        let away = error(Code::Unavailable, UNREACHABLE);
        let waits: Vec<_> = (1..=6).map(|attempt| retry.wait(&away, true, attempt, 0.5)).collect();
        assert!(waits[..5].windows(2).all(|pair| pair[0] < pair[1]), "{waits:?}");
        assert_eq!(waits[5], None);
    }

    #[test]
    fn the_servers_wish_is_waited_for() {
        let mut full = error(Code::ResourceExhausted, "QUEUE_FULL");
        full.retry_after = Some(Duration::from_secs(3));
        assert_eq!(Retry::default().wait(&full, false, 1, 0.0), Some(Duration::from_secs(3)));
    }
}

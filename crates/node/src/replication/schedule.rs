//! When to dial again: exponentially later, with jitter, so that regions that lost each other do not meet in step. Pure.
//! Source: "full jitter" over the upper half (AWS architecture blog, 2015).

use std::time::Duration;

use rand::Rng;

#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Backoff { min, max, failures: 0 }
    }

    /// A connection held: the next failure starts anew.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait after one more failure.
    pub(crate) fn next(&mut self, rng: &mut impl Rng) -> Duration {
        let ceiling = self.min.saturating_mul(1 << self.failures.min(16)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(rng.random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    fn waits_grow_to_the_longest_and_start_anew_after_success() {
        let mut rng = StdRng::seed_from_u64(1);
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(2));
        let mut backoff = Backoff::new(min, max);
        let waits: Vec<Duration> = (0..40).map(|_| backoff.next(&mut rng)).collect();
        assert!(waits[0] >= min / 2 && waits[0] <= min);
        assert!(waits[20..].iter().all(|wait| *wait >= max / 2 && *wait <= max));
        backoff.reset();
        assert!(backoff.next(&mut rng) <= min);
    }
}

//! How long operations took, as an HDR histogram: three digits of every value, from a microsecond to ten minutes, whatever their
//! spread.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

const HIGHEST_US: u64 = 600_000_000;
const DIGITS: u8 = 3;

#[derive(Clone, Debug)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, HIGHEST_US, DIGITS);
        Latency(histogram.expect("bounds and digits are constants within the histogram's limits"))
    }
}

impl Latency {
    pub fn note(&mut self, took: Duration) {
        // Longer than the highest counts as the highest: it is shown as such in `max`.
        self.0.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    pub fn merge(&mut self, other: &Latency) {
        // Both have the same bounds.
        let _ = self.0.add(&other.0);
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// In milliseconds; `quantile` in [0, 1].
    pub fn at(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1000.0
    }

    pub fn max(&self) -> f64 {
        self.0.max() as f64 / 1000.0
    }

    /// Points of the distribution, ever closer towards 1: quantile and milliseconds.
    pub fn curve(&self) -> Vec<(f64, f64)> {
        let points = self.0.iter_quantiles(5).map(|at| (at.quantile(), at.value_iterated_to() as f64 / 1000.0));
        points.collect()
    }
}

/// The percentiles that are shown everywhere, in milliseconds.
pub const SHOWN: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99_9", 0.999)];

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Latency", SHOWN.len() + 2)?;
        fields.serialize_field("count", &self.count())?;
        for (name, quantile) in SHOWN {
            fields.serialize_field(name, &self.at(quantile))?;
        }
        fields.serialize_field("max", &self.max())?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_a_thousandth() {
        let mut latency = Latency::default();
        (1..=10_000u64).for_each(|us| latency.note(Duration::from_micros(us)));
        for (_, quantile) in SHOWN {
            let expected = 10.0 * quantile;
            assert!((latency.at(quantile) - expected).abs() / expected < 0.001, "{quantile}: {}", latency.at(quantile));
        }
        assert!((latency.max() - 10.0).abs() < 0.01);
    }

    #[test]
    fn what_is_beyond_the_bounds_is_counted_all_the_same() {
        let mut latency = Latency::default();
        latency.note(Duration::ZERO);
        latency.note(Duration::from_secs(100_000));
        assert_eq!(latency.count(), 2);
    }
}

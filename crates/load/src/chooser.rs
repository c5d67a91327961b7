//! Which record an operation is about: uniform, zipfian or latest, as in YCSB (Cooper et al.: "Benchmarking cloud serving systems
//! with YCSB", SoCC 2010).
//!
//! The zipfian generator is that of Gray et al. ("Quickly generating billion-record synthetic databases", SIGMOD 1994), which draws
//! in constant time once the zeta of the number of items is known. That is summed up once and only added to as items grow.

use clap::ValueEnum;
use serde::Serialize;

use crate::random::{Random, mix};

/// YCSB's constant: the hottest of a million items then gets 6.6 % of all draws.
pub const THETA: f64 = 0.99;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    /// Every record alike.
    Uniform,
    /// A few hot records, scattered over the key space.
    Zipfian,
    /// Zipfian from the newest record backwards.
    Latest,
}

#[derive(Clone, Debug)]
pub struct Chooser {
    distribution: Distribution,
    zipfian: Option<Zipfian>,
}

impl Chooser {
    /// Over `items`, at least one.
    pub fn new(distribution: Distribution, items: u64) -> Chooser {
        let zipfian = (distribution != Distribution::Uniform).then(|| Zipfian::new(items, THETA));
        Chooser { distribution, zipfian }
    }

    /// Among [0, items). `items` may have grown since the last time, never shrunk.
    pub fn choose(&mut self, items: u64, random: &mut Random) -> u64 {
        match (&mut self.zipfian, self.distribution) {
            (Some(zipfian), Distribution::Latest) => items - 1 - zipfian.rank(items, random),
            // Scattered, so that hot records are no neighbours: in key order they would share pages and shards.
            (Some(zipfian), _) => mix(zipfian.rank(items, random)) % items,
            (None, _) => random.below(items),
        }
    }
}

/// Draws rank r of [0, items) with a probability proportional to 1 / (r + 1)^theta.
#[derive(Clone, Debug)]
pub struct Zipfian {
    items: u64,
    theta: f64,
    /// The sum of 1 / i^theta over all items: what probabilities are divided by.
    zeta: f64,
    zeta_of_two: f64,
    alpha: f64,
    eta: f64,
}

impl Zipfian {
    pub fn new(items: u64, theta: f64) -> Zipfian {
        assert!(items > 0, "nothing to choose from");
        let zeta_of_two = zeta(0, 2, theta);
        let alpha = 1.0 / (1.0 - theta);
        let mut zipfian = Zipfian { items: 0, theta, zeta: 0.0, zeta_of_two, alpha, eta: 0.0 };
        zipfian.grow(items);
        zipfian
    }

    fn grow(&mut self, items: u64) {
        assert!(items >= self.items, "{items} items are fewer than {}", self.items);
        self.zeta += zeta(self.items, items, self.theta);
        self.items = items;
        let tail = (2.0 / items as f64).powf(1.0 - self.theta);
        self.eta = (1.0 - tail) / (1.0 - self.zeta_of_two / self.zeta);
    }

    pub fn rank(&mut self, items: u64, random: &mut Random) -> u64 {
        if items != self.items {
            self.grow(items);
        }
        let drawn = random.fraction();
        let scaled = drawn * self.zeta;
        // The two hottest are drawn exactly; the formula below is an approximation of all others.
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5f64.powf(self.theta) {
            return 1.min(items - 1);
        }
        let rank = items as f64 * (self.eta * drawn - self.eta + 1.0).powf(self.alpha);
        (rank as u64).min(items - 1)
    }
}

/// The sum of 1 / i^theta for i in (from, to].
fn zeta(from: u64, to: u64, theta: f64) -> f64 {
    (from..to).map(|item| 1.0 / ((item + 1) as f64).powf(theta)).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DRAWS: u64 = 400_000;

    fn counts(items: u64, mut draw: impl FnMut(&mut Random) -> u64) -> Vec<f64> {
        let mut random = Random::new(42);
        let mut counts = vec![0.0; items as usize];
        (0..DRAWS).for_each(|_| counts[draw(&mut random) as usize] += 1.0);
        counts
    }

    #[test]
    fn zipfian_frequencies_follow_the_formula() {
        let items = 1_000;
        let mut zipfian = Zipfian::new(items, THETA);
        let counts = counts(items, |random| zipfian.rank(items, random));
        let zeta = zeta(0, items, THETA);
        let share = |rank: u64| 1.0 / ((rank + 1) as f64).powf(THETA) / zeta;
        for rank in [0, 1] {
            let expected = share(rank) * DRAWS as f64;
            let error = (counts[rank as usize] - expected).abs() / expected;
            assert!(error < 0.03, "rank {rank}: {} instead of {expected}", counts[rank as usize]);
        }
        // Behind the first two Gray's inversion is an approximation: whole decades are compared.
        for (from, to) in [(2, 10), (10, 100), (100, 1_000)] {
            let expected = (from..to).map(share).sum::<f64>() * DRAWS as f64;
            let drawn: f64 = counts[from as usize..to as usize].iter().sum();
            assert!((drawn - expected).abs() / expected < 0.10, "ranks {from} to {to}: {drawn} instead of {expected}");
        }
    }

    #[test]
    fn zeta_that_grew_is_the_zeta_of_all() {
        let mut grown = Zipfian::new(10, THETA);
        (11..=500).for_each(|items| grown.grow(items));
        let whole = Zipfian::new(500, THETA);
        assert!((grown.zeta - whole.zeta).abs() < 1e-9 && (grown.eta - whole.eta).abs() < 1e-9);
    }

    #[test]
    fn uniform_is_even() {
        let mut chooser = Chooser::new(Distribution::Uniform, 100);
        let counts = counts(100, |random| chooser.choose(100, random));
        let expected = DRAWS as f64 / 100.0;
        assert!(counts.iter().all(|count| (count - expected).abs() / expected < 0.10));
    }

    #[test]
    fn latest_favours_the_newest_as_items_grow() {
        let mut chooser = Chooser::new(Distribution::Latest, 100);
        let mut random = Random::new(1);
        let mut newest = 0;
        for items in 100..10_100 {
            newest += u64::from(chooser.choose(items, &mut random) == items - 1);
        }
        assert!((800..2_500).contains(&newest), "the newest was chosen {newest} times in 10,000");
    }

    #[test]
    fn hot_records_are_scattered() {
        let mut chooser = Chooser::new(Distribution::Zipfian, 1_000);
        let counts = counts(1_000, |random| chooser.choose(1_000, random));
        let mut hottest: Vec<usize> = (0..1_000).collect();
        hottest.sort_by(|a, b| counts[*b].total_cmp(&counts[*a]));
        assert!(hottest[0].abs_diff(hottest[1]) > 1 && hottest[1].abs_diff(hottest[2]) > 1, "{:?}", &hottest[..3]);
    }

    proptest! {
        #[test]
        fn whatever_is_chosen_exists(items in 1u64..5_000, more in 0u64..100, seed: u64) {
            for distribution in [Distribution::Uniform, Distribution::Zipfian, Distribution::Latest] {
                let mut chooser = Chooser::new(distribution, items);
                let mut random = Random::new(seed);
                for now in items..=items + more {
                    prop_assert!(chooser.choose(now, &mut random) < now);
                }
            }
        }
    }
}

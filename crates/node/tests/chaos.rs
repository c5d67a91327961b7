//! Random histories end in agreement. `ISLE_NODE_SEEDS=n` runs that many seeds, `ISLE_NODE_SEED=s` one.
#![allow(clippy::unwrap_used)]

mod cluster;

use cluster::chaos::{Mix, run};

// A test has no main to read its settings for it.
#[allow(clippy::disallowed_methods)]
fn seeds(by_default: u64) -> Vec<u64> {
    let read = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match (read("ISLE_NODE_SEED"), read("ISLE_NODE_SEEDS")) {
        (Some(one), _) => vec![one],
        (_, many) => (0..many.unwrap_or(by_default)).collect(),
    }
}

#[test]
fn honest_crashes_and_cuts_end_in_agreement_and_exact_counters() {
    seeds(20).into_iter().for_each(|seed| drop(run(seed, Mix::Honest)));
}

#[test]
fn restored_disks_and_trimmed_logs_end_in_agreement() {
    seeds(20).into_iter().for_each(|seed| drop(run(seed, Mix::Restored)));
}

#[test]
fn one_seed_has_one_history() {
    for seed in 0..3 {
        assert_eq!(run(seed, Mix::Restored), run(seed, Mix::Restored), "seed {seed}");
    }
}

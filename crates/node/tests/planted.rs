//! Bugs put in on purpose are found by the random histories: proof that those can fail. A bug is planted for the whole process,
//! so this file holds one test.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::panic::{AssertUnwindSafe, catch_unwind};

use cluster::chaos::{Mix, run};
use isle_model::planted::{Bug, plant};

/// More than enough: each bug is found within the first few.
const SEEDS: u64 = 200;

fn is_found(mix: Mix) -> bool {
    (0..SEEDS).any(|seed| catch_unwind(AssertUnwindSafe(|| run(seed, mix))).is_err())
}

#[test]
fn every_planted_bug_is_found() {
    for (bug, mix) in
        [(Bug::ReplyBeforeSync, Mix::Honest), (Bug::ForgetEarly, Mix::Honest), (Bug::SkipGap, Mix::Restored)]
    {
        plant(Some(bug));
        let found = is_found(mix);
        plant(None);
        assert!(found, "{bug:?} is not found in {SEEDS} seeds");
    }
}

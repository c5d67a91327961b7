//! The planted bugs are found by the histories, each within a bounded number of seeds. A process of its own: a planted bug
//! is planted for all of it.
#![cfg(feature = "planted")]

mod world;

use isle_model::planted::{Bug, plant};
use world::{run, steps};

const SEEDS: u64 = 400;

#[test]
fn planted_bugs_are_found() {
    for bug in [Bug::SkipGap, Bug::ForgetEarly] {
        plant(Some(bug));
        let found = (0..SEEDS).find_map(|seed| run(seed, false, &steps(seed, 90)).err().map(|story| (seed, story)));
        plant(None);
        let (seed, story) = found.unwrap_or_else(|| panic!("{bug:?} was not found in {SEEDS} seeds"));
        println!("{bug:?} found by seed {seed}: {story}");
        run(seed, false, &steps(seed, 90)).unwrap_or_else(|story| panic!("seed {seed} fails unplanted: {story}"));
    }
}

//! Bugs put in on purpose, to prove that the simulation finds them: a few recorded seeds of each are replayed, which fail with
//! the bug and pass without it. `just mutants` searches for seeds anew. A bug is planted for the whole process, so this is one
//! of its own.
#![allow(clippy::unwrap_used)]

// What only the other test uses of it.
#[allow(dead_code)]
#[path = "../simulation/harness/mod.rs"]
mod harness;

use harness::Mix;
use harness::seeds::{Case, cases, run_all};
use isle_model::planted::{Bug, plant};
use parking_lot::Mutex;

/// Cases that caught each bug. A change of the code changes histories, so not each must catch it for ever, but one must.
const RECORDED: [(Bug, [Case; 5]); 3] = [
    (
        Bug::ReplyBeforeSync,
        [(6, Mix::Crashes), (14, Mix::Crashes), (18, Mix::Crashes), (26, Mix::Crashes), (30, Mix::Crashes)],
    ),
    (
        Bug::ForgetEarly,
        [(2, Mix::Crashes), (5, Mix::Partitions), (9, Mix::Partitions), (17, Mix::Partitions), (25, Mix::Partitions)],
    ),
    (Bug::SkipGap, [(1, Mix::Partitions), (3, Mix::Lying), (6, Mix::Crashes), (10, Mix::Crashes), (19, Mix::Lying)]),
];

/// The cases that fail with a bug planted, and why.
fn caught(bug: Option<Bug>, cases: &[Case]) -> Vec<(Case, String)> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock();
    plant(bug);
    let ran = run_all(cases, |_, _| {});
    plant(None);
    ran.into_iter().filter_map(|(case, ran)| ran.err().map(|error| (case, error))).collect()
}

#[test]
fn recorded_seeds_catch_every_planted_bug() {
    for (bug, cases) in RECORDED {
        assert_eq!(caught(None, &cases), [], "{bug:?} is not planted");
        let caught = caught(Some(bug), &cases);
        println!("{bug:?}: {} of {} recorded cases catch it", caught.len(), cases.len());
        assert!(!caught.is_empty(), "no recorded case catches {bug:?} any more; find others by `just mutants`");
    }
}

#[test]
#[ignore = "searches for seeds: `just mutants`"]
fn seeds_that_catch_planted_bugs_are_searched_anew() {
    // Calm catches little: there is nothing to recover from.
    let cases: Vec<Case> = cases(400).into_iter().filter(|(_, mix)| *mix != Mix::Calm).collect();
    for bug in Bug::ALL {
        let found = caught(Some(bug), &cases);
        println!("{bug:?}: {} of {} cases catch it", found.len(), cases.len());
        for (case, error) in found.iter().take(8) {
            println!("    {case:?}: {}", error.lines().next().unwrap_or_default());
        }
        assert!(!found.is_empty(), "{bug:?} is not found");
    }
}

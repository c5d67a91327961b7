//! Bugs put in on purpose, to prove that the simulation finds them: a few recorded seeds of each are replayed, which fail with
//! the bug and pass without it. `just mutants` searches for seeds anew. A bug is planted for the whole process, so this is one
//! of its own.
#![allow(clippy::unwrap_used)]

// What only the other test uses of it.
#[allow(dead_code)]
#[path = "../simulation/harness/mod.rs"]
mod harness;
mod recorded;

use std::collections::BTreeSet;

use harness::Mix;
use harness::seeds::{Case, run_all, setting};
use isle_model::planted::{Bug, plant};
use parking_lot::Mutex;
use recorded::RECORDED;

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
    let all: BTreeSet<Case> = RECORDED.iter().flat_map(|(_, cases)| cases.iter().copied()).collect();
    let all: Vec<Case> = all.into_iter().collect();
    assert_eq!(caught(None, &all), [], "nothing is planted");
    let planted: BTreeSet<Bug> = RECORDED.iter().map(|(bug, _)| *bug).collect();
    assert!(Bug::ALL.iter().all(|bug| planted.contains(bug)), "every bug has recorded seeds");
    for (bug, cases) in RECORDED {
        let caught = caught(Some(*bug), cases);
        println!("{bug:?}: {} of {} recorded cases catch it", caught.len(), cases.len());
        assert!(!caught.is_empty(), "no recorded case catches {bug:?} any more; find others by `just mutants`");
    }
}

/// Where a bug can show.
fn mixes(bug: Bug) -> &'static [Mix] {
    match bug {
        Bug::ReplyBeforeSync | Bug::SkipInReplay => &[Mix::Crashes, Mix::Disks],
        Bug::AdmitReplaced => &[Mix::Cloned],
        Bug::TakeForeignHome | Bug::StrongFromHere => &[Mix::Homed],
        Bug::SkipHanding | Bug::ServeHalf | Bug::GoneAtOnce => &[Mix::Holders],
        Bug::ForgetChange | Bug::PinAtLast => &[Mix::Warm],
        Bug::CursorBeforeLast | Bug::KeepUnlisted => &[Mix::Away, Mix::Restored, Mix::Partitions],
        _ => &[Mix::Partitions, Mix::Crashes],
    }
}

#[test]
#[ignore = "searches for seeds: `just mutants`"]
fn seeds_that_catch_planted_bugs_are_searched_anew() {
    const ENOUGH: usize = 5;
    let seeds = setting("ISLE_SIM_SEEDS").unwrap_or(400);
    // One bug's seeds alone, by its number.
    let only = setting("ISLE_SIM_BUG");
    for bug in Bug::ALL.into_iter().filter(|bug| only.is_none_or(|only| only == *bug as u64)) {
        let mixes = mixes(bug);
        let cases: Vec<Case> = (0..seeds).map(|seed| (seed, mixes[seed as usize % mixes.len()])).collect();
        let (mut found, mut tried) = (Vec::new(), 0);
        for some in cases.chunks(8) {
            found.extend(caught(Some(bug), some));
            tried += some.len();
            if found.len() >= ENOUGH {
                break;
            }
        }
        println!("{bug:?}: {} of {tried} cases catch it", found.len());
        for (case, error) in found.iter().take(ENOUGH) {
            println!("    {case:?}: {:.200}", error.lines().next().unwrap_or_default());
        }
        assert!(!found.is_empty(), "{bug:?} is not found");
    }
}

//! The simulation: three regions under faults, thousands of times over. `ISLE_SIM_SEED=n` runs one seed again,
//! `ISLE_SIM_SEEDS=10000` as many as wanted.
#![allow(clippy::unwrap_used)]

mod harness;

use std::time::{Duration, Instant};

use harness::Mix;
use harness::run::Ran;
use harness::seeds::{Case, UNSOLVED, cases, run_all, setting, tell};

#[test]
fn the_laws_hold_under_all_mixes_of_faults() {
    let all = run_all_in_time(&cases(200));
    for mix in Mix::ALL {
        let ran = || all.iter().filter(|((_, m), _)| *m == mix).filter_map(|(_, ran)| ran.as_ref().ok());
        let (simulated, events): (Duration, u64) = (ran().map(|r| r.simulated).sum(), ran().map(|r| r.events).sum());
        let (crashes, states): (u64, u64) = (ran().map(|r| r.crashes).sum(), ran().map(|r| r.states_taken).sum());
        let quarantined: u64 = ran().map(|r| r.quarantined).sum();
        let judged: u64 = ran().map(|r| r.judged).sum();
        println!(
            "{mix:?}: {simulated:.0?}, {events} events, {crashes} crashes, {states} chunks of state taken, {quarantined} deltas quarantined, \
             {judged} causes judged"
        );
    }
    let judged: Vec<_> = all.into_iter().filter(|(case, _)| !UNSOLVED.contains(case)).collect();
    let failed: Vec<_> = judged.iter().filter(|(_, ran)| ran.is_err()).map(|(case, _)| *case).collect();
    let (tried, lost) = (judged.len(), failed.len());
    println!("scenario simulation: tried {tried}, survived {}, lost {lost}", tried - lost);
    assert!(failed.is_empty(), "{lost} of {tried} cases fail: {failed:?}");
}

/// All cases, and in a long run (`ISLE_TORTURE_SECONDS`) the seeds behind them as long as there is time.
#[allow(
    clippy::disallowed_methods,
    reason = "how long the test may take is real time, and the simulation does not see it"
)]
fn run_all_in_time(cases: &[Case]) -> Vec<(Case, Result<Ran, String>)> {
    const A_ROUND: u64 = 40;
    let Some(seconds) = setting("ISLE_TORTURE_SECONDS") else { return run_all(cases, tell) };
    let (began, mut all) = (Instant::now(), Vec::new());
    let mut seed = 0;
    while began.elapsed() < Duration::from_secs(seconds) {
        let round: Vec<_> = (seed..seed + A_ROUND).map(|n| (n, Mix::ALL[n as usize % Mix::ALL.len()])).collect();
        all.extend(run_all(&round, tell));
        seed += A_ROUND;
    }
    all
}

#[test]
fn the_same_seed_has_the_same_history() {
    let cases: Vec<_> = (0..5).map(|seed| (seed, Mix::ALL[(seed as usize * 3 + 1) % Mix::ALL.len()])).collect();
    let hashes = || -> Vec<_> {
        run_all(&cases, tell).into_iter().map(|(case, ran)| (case, ran.map(|ran| (ran.hash, ran.events)))).collect()
    };
    assert_eq!(hashes(), hashes());
}

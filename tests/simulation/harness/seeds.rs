//! Which seeds to run, and running them side by side: each on a thread of its own, none knowing of the others.

use std::panic::catch_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::Mix;
use super::run::{Ran, run, trace};

/// How many mixes came when the others' seeds were there.
const LATER: usize = 4;

/// One seed in one mix.
pub type Case = (u64, Mix);

/// Settings of the test run. The simulation itself never looks at the environment.
#[allow(clippy::disallowed_methods)]
pub fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// `ISLE_SIM_SEED=n` is one seed, in every mix (or, by `ISLE_SIM_MIX=0..12`, in one); `ISLE_SIM_SEEDS=n` so many cases in all.
pub fn cases(by_default: u64) -> Vec<Case> {
    let mixes = match setting("ISLE_SIM_MIX") {
        Some(one) => vec![Mix::ALL[one as usize]],
        None => Mix::ALL.to_vec(),
    };
    if let Some(seed) = setting("ISLE_SIM_SEED") {
        return mixes.into_iter().map(|mix| (seed, mix)).collect();
    }
    let Some(count) = setting("ISLE_SIM_SEEDS") else {
        // The last mixes came later: they do not shift the others' seeds.
        let (older, later) = mixes.split_at(mixes.len().saturating_sub(LATER));
        let older = (0..by_default).filter(|_| !older.is_empty()).map(|n| (n, older[n as usize % older.len()]));
        return older.chain(later.iter().flat_map(|mix| (0..by_default / 8).map(|seed| (seed, *mix)))).collect();
    };
    (0..count).map(|n| (n, mixes[n as usize % mixes.len()])).collect()
}

/// Says how a case failed and how to run it again.
pub fn tell(case: Case, error: &str) {
    let mix = Mix::ALL.iter().position(|mix| *mix == case.1).expect("every mix is listed");
    eprintln!("seed {} {:?} fails: {error:.6000}", case.0, case.1);
    eprintln!("  again: ISLE_SIM_SEED={} ISLE_SIM_MIX={mix} cargo test --test simulation -- --nocapture laws", case.0);
}

/// A panic anywhere in the run fails it like a broken law does. `ISLE_SIM_TRACE=DIR` keeps every history there, in words.
#[allow(clippy::disallowed_methods)]
fn run_one((seed, mix): Case) -> Result<Ran, String> {
    let ran = catch_unwind(|| match std::env::var("ISLE_SIM_TRACE") {
        Ok(directory) => {
            let (ran, story) = trace(seed, mix);
            std::fs::write(format!("{directory}/{seed}-{mix:?}.txt"), story).expect("the trace is written");
            ran
        }
        Err(_) => run(seed, mix),
    });
    ran.unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(format!("panic: {}", words.unwrap_or("without words")))
    })
}

/// Runs all cases; what came of each, in order. `report` is told of every failure as it happens.
#[allow(clippy::disallowed_methods)]
pub fn run_all(cases: &[Case], report: impl Fn(Case, &str) + Sync) -> Vec<(Case, Result<Ran, String>)> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(cases.len()));
    let threads = setting("ISLE_SIM_THREADS").unwrap_or(2);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let ran = run_one(*case);
                    if let Err(error) = &ran {
                        report(*case, error);
                    }
                    done.lock().push((*case, ran));
                }
            });
        }
    });
    let mut done = done.into_inner();
    done.sort_by_key(|(case, _)| *case);
    done
}

//! What a machine room does to isle, done to real processes: they are killed, their power is cut, their disks fill up and
//! fail, their network is cut. A client that remembers every ack judges from outside.
//!
//! ```text
//! cargo test --test torture                                  a short version of each scenario
//! cargo test --release --test torture -- --seconds 900       each gets its share, and so do the long tests elsewhere
//! cargo test --test torture -- kill --seed 7                 one of them
//! ```
//! At the end there is one row a scenario: tried, survived, lost. Anything lost fails the run. What cannot run here (most
//! of all: mounting a file system needs root) is skipped, and says so.
//!
//! ```text
//! kill, power, disk_full, failing_fsync, isolation, dead_peer     the scenarios
//!   ├─ load ─▶ history      writers, and what they were told
//!   ├─ node                 processes
//!   ├─ volume, cable        file systems and links that can be broken
//!   └─ budget, report       time, and what came of it
//! elsewhere                 the long versions of other tests
//! ```
#![allow(clippy::unwrap_used)]

mod budget;
mod cable;
mod cluster;
mod contest;
mod dead_peer;
mod disk_full;
mod elsewhere;
mod failing_fsync;
mod history;
mod isolation;
mod kill;
mod load;
mod node;
mod power;
mod report;
mod volume;

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use budget::{Budget, Skipped};
use futures::FutureExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use report::{Outcome, Row};
use tokio::time::Instant;

type Running<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

struct Scenario {
    name: &'static str,
    /// Its part of the time, beside the others'.
    weight: u32,
    /// Rounds of the short version; the long one has as many at least.
    rounds: u64,
    run: for<'a> fn(&'a mut Budget) -> Running<'a>,
}

const SCENARIOS: &[Scenario] = &[
    Scenario { name: "kill", weight: 14, rounds: 5, run: |b| Box::pin(kill::run(b)) },
    Scenario { name: "power", weight: 12, rounds: 2, run: |b| Box::pin(power::ext4(b)) },
    Scenario { name: "power-xfs", weight: 6, rounds: 1, run: |b| Box::pin(power::xfs(b)) },
    Scenario { name: "disk-full", weight: 8, rounds: 2, run: |b| Box::pin(disk_full::run(b)) },
    Scenario { name: "failing-fsync", weight: 4, rounds: 2, run: |b| Box::pin(failing_fsync::run(b)) },
    Scenario { name: "isolation", weight: 18, rounds: 1, run: |b| Box::pin(isolation::run(b)) },
    Scenario { name: "dead-peer", weight: 12, rounds: 1, run: |b| Box::pin(dead_peer::run(b)) },
];

#[derive(Debug, Default)]
struct Asked {
    seconds: Option<u64>,
    /// Names alone, for tools that ask what there is before they run it.
    list: bool,
    seed: Option<u64>,
    names: Vec<String>,
}

fn main() -> ExitCode {
    report::check_itself();
    let asked = match asked(std::env::args().skip(1)) {
        Ok(asked) => asked,
        Err(fault) => {
            eprintln!("{fault}");
            return ExitCode::from(2);
        }
    };
    if asked.list {
        SCENARIOS.iter().for_each(|scenario| println!("{}: test", scenario.name));
        return ExitCode::SUCCESS;
    }
    let seed = asked.seed.unwrap_or_else(|| StdRng::from_os_rng().random_range(0..1_000_000));
    println!("torture: seed {seed} (give it back by --seed {seed})");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let all = run_all(&asked, seed);
    // Ended by hand, the scenarios are dropped: processes are killed and file systems unmounted.
    let rows = runtime.block_on(async {
        tokio::select! {
            rows = all => Some(rows),
            _ = tokio::signal::ctrl_c() => None,
        }
    });
    let Some(rows) = rows else { return ExitCode::from(130) };
    println!("\n{}", report::table(&rows));
    if rows.iter().all(Row::is_good) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The flags of this runner. Those of the usual harness that change nothing here are taken and forgotten.
fn asked(mut arguments: impl Iterator<Item = String>) -> Result<Asked, String> {
    let mut asked = Asked::default();
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let value = arguments.next().and_then(|value| value.parse().ok());
            value.ok_or_else(|| format!("{argument} needs a whole number"))
        };
        match argument.as_str() {
            "--seconds" => asked.seconds = Some(number()?),
            "--seed" => asked.seed = Some(number()?),
            "--list" => asked.list = true,
            // None is ignored, so that there is nothing to run for whoever asks for those.
            "--ignored" => asked.names.push("ignored".to_owned()),
            "--test-threads" => _ = number()?,
            "--color" | "--format" | "--logfile" | "--skip" | "-Z" => _ = arguments.next(),
            "--nocapture" | "--no-capture" | "--show-output" | "--quiet" | "-q" | "--exact" | "--include-ignored" => {}
            flag if flag.starts_with('-') => return Err(format!("{flag} is not a flag of this runner")),
            name => asked.names.push(name.to_owned()),
        }
    }
    Ok(asked)
}

impl Asked {
    fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| name.contains(wanted.as_str()))
    }

    /// A part of all the time, if there is a bound to it.
    fn share(&self, weight: u32, of: u32) -> Option<Duration> {
        self.seconds.map(|seconds| Duration::from_secs(seconds) * weight / of.max(1))
    }
}

async fn run_all(asked: &Asked, seed: u64) -> Vec<Row> {
    let wanted: Vec<_> = SCENARIOS.iter().filter(|scenario| asked.wants(scenario.name)).collect();
    // Those are tests of their own in a short run.
    let programs = || elsewhere::PROGRAMS.iter().filter(|program| asked.seconds.is_some() && asked.wants(program.name));
    let of = wanted.iter().map(|s| s.weight).sum::<u32>() + programs().map(|p| p.weight).sum::<u32>();
    let mut rows = Vec::new();
    for scenario in wanted {
        let share = asked.share(scenario.weight, of);
        let row = run_one(scenario, Budget::new(seed, share, scenario.rounds)).await;
        tell(&row);
        rows.push(row);
    }
    for program in programs() {
        let share = asked.share(program.weight, of).unwrap_or_default();
        let more = elsewhere::run(program, share).await;
        more.iter().for_each(tell);
        rows.extend(more);
    }
    rows
}

async fn run_one(scenario: &Scenario, mut budget: Budget) -> Row {
    let began = Instant::now();
    let ran = AssertUnwindSafe((scenario.run)(&mut budget)).catch_unwind().await;
    let row = |outcome, notes| Row { name: scenario.name.to_owned(), outcome, took: began.elapsed(), notes };
    let failure = match ran {
        Ok(Ok(())) => None,
        Ok(Err(error)) if error.is::<Skipped>() => return row(Outcome::Skipped(error.to_string()), vec![]),
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(panic) => {
            let words = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Some(format!("panic: {}", words.unwrap_or("without words")))
        }
    };
    if let Some(why) = failure {
        budget.lost(why);
    }
    let (tally, notes) = budget.end();
    row(Outcome::Ran(tally), notes)
}

fn tell(row: &Row) {
    match &row.outcome {
        Outcome::Ran(tally) => println!("scenario {}: {tally} ({:.1} s)", row.name, row.took.as_secs_f64()),
        Outcome::Skipped(why) => println!("scenario {}: skipped: {why}", row.name),
    }
    row.notes.iter().for_each(|note| println!("    {note}"));
}

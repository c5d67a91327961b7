//! Runs a workload: rounds, targets in turn, each on a fresh deployment.

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::BenchError;
use crate::deployment::{Deployment, Starter};
use crate::options::LoadOptions;
use crate::workload::Outcome;
use crate::workload::burst::BurstOptions;
use crate::workload::conflict::ConflictOptions;
use crate::workload::lag::LagOptions;
use crate::workload::recovery::RecoveryOptions;
use crate::workload::ycsb::YcsbOptions;

#[derive(Subcommand, Clone, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// Writes of fresh keys, as fast as the target takes them
    Burst(BurstOptions),
    /// The YCSB core mixes of reads and writes
    Ycsb(YcsbOptions),
    /// The same keys written in several regions at once
    Conflict(ConflictOptions),
    /// A write here until it is seen there
    Lag(LagOptions),
    /// How long a region is away after a stop, a kill and an outage
    Recovery(RecoveryOptions),
}

impl Workload {
    pub fn check(&self) -> Result<(), BenchError> {
        match self {
            Workload::Burst(options) => options.check(),
            Workload::Ycsb(options) => options.check(),
            Workload::Conflict(options) => options.check(),
            Workload::Lag(options) => options.check(),
            Workload::Recovery(options) => options.check(),
        }
    }

    pub fn load(&self) -> &LoadOptions {
        match self {
            Workload::Burst(options) => &options.load,
            Workload::Ycsb(options) => &options.load,
            Workload::Conflict(options) => &options.load,
            Workload::Lag(options) => &options.load,
            Workload::Recovery(options) => &options.load,
        }
    }

    pub fn load_mut(&mut self) -> &mut LoadOptions {
        match self {
            Workload::Burst(options) => &mut options.load,
            Workload::Ycsb(options) => &mut options.load,
            Workload::Conflict(options) => &mut options.load,
            Workload::Lag(options) => &mut options.load,
            Workload::Recovery(options) => &mut options.load,
        }
    }

    /// What charts are called.
    pub fn title(&self) -> String {
        match self {
            Workload::Burst(options) => format!("burst {}", options.mode.name()),
            Workload::Ycsb(options) => format!("ycsb {:?}", options.core),
            Workload::Conflict(_) => "conflict".to_owned(),
            Workload::Lag(options) => format!("lag {}", options.variant()),
            Workload::Recovery(_) => "recovery".to_owned(),
        }
    }

    /// What it needs, where nothing else is asked for.
    pub fn regions(&self) -> usize {
        let usual = match self {
            Workload::Burst(_) | Workload::Ycsb(_) | Workload::Recovery(_) => 1,
            Workload::Conflict(_) | Workload::Lag(_) => 2,
        };
        self.load().regions.unwrap_or(usual)
    }

    async fn run(&self, deployment: &mut Deployment, round: u32, bar: &ProgressBar) -> Result<Outcome, BenchError> {
        match self {
            Workload::Burst(options) => options.run(deployment, round, bar).await,
            Workload::Ycsb(options) => options.run(deployment, round, bar).await,
            Workload::Conflict(options) => options.run(deployment, round, bar).await,
            Workload::Lag(options) => options.run(deployment, round, bar).await,
            Workload::Recovery(options) => options.run(deployment, round, bar).await,
        }
    }
}

/// All rounds. Targets take turns, so that whatever the machine does meanwhile befalls them alike. `report` hears of every
/// outcome as it comes.
pub async fn run(
    workload: &Workload,
    starters: &[Box<dyn Starter>],
    mut report: impl FnMut(&Outcome),
) -> Result<Vec<Outcome>, BenchError> {
    workload.check()?;
    let mut outcomes = Vec::new();
    for round in 1..=workload.load().repeats {
        for starter in starters {
            let outcome = once(workload, starter.as_ref(), round).await?;
            report(&outcome);
            outcomes.push(outcome);
        }
    }
    Ok(outcomes)
}

/// One round at one target, from its start to its end.
pub async fn once(workload: &Workload, starter: &dyn Starter, round: u32) -> Result<Outcome, BenchError> {
    let mut deployment = starter.start(workload.regions()).await?;
    let bar = progress(starter.name(), round);
    let outcome = workload.run(&mut deployment, round, &bar).await;
    bar.finish_and_clear();
    deployment.stop().await?;
    outcome
}

/// Draws on a terminal only; elsewhere it is silent.
fn progress(target: &str, round: u32) -> ProgressBar {
    let bar = ProgressBar::new(0).with_message(format!("{target}, round {round}"));
    match ProgressStyle::with_template("{msg} {bar:40} {human_pos}/{human_len} {per_sec} {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

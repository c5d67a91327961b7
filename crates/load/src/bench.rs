//! Runs a workload: rounds, targets in turn, each on a fresh deployment.

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::BenchError;
use crate::deployment::{Deployment, Starter};
use crate::options::LoadOptions;
use crate::workload::Outcome;
use crate::workload::burst::BurstOptions;

#[derive(Subcommand, Clone, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// Writes of fresh keys, as fast as the target takes them
    Burst(BurstOptions),
}

impl Workload {
    pub fn check(&self) -> Result<(), BenchError> {
        match self {
            Workload::Burst(options) => options.check(),
        }
    }

    pub fn load(&self) -> &LoadOptions {
        match self {
            Workload::Burst(options) => &options.load,
        }
    }

    /// What it needs, where nothing else is asked for.
    pub fn regions(&self) -> usize {
        let usual = match self {
            Workload::Burst(_) => 1,
        };
        self.load().regions.unwrap_or(usual)
    }

    async fn run(&self, deployment: &mut Deployment, round: u32, bar: &ProgressBar) -> Result<Outcome, BenchError> {
        match self {
            Workload::Burst(options) => options.run(deployment, round, bar).await,
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
            let mut deployment = starter.start(workload.regions()).await?;
            let bar = progress(starter.name(), round);
            let outcome = workload.run(&mut deployment, round, &bar).await;
            bar.finish_and_clear();
            deployment.stop().await?;
            let outcome = outcome?;
            report(&outcome);
            outcomes.push(outcome);
        }
    }
    Ok(outcomes)
}

/// Draws on a terminal only; elsewhere it is silent.
fn progress(target: &str, round: u32) -> ProgressBar {
    let bar = ProgressBar::new(0).with_message(format!("{target}, round {round}"));
    match ProgressStyle::with_template("{msg} {bar:40} {human_pos}/{human_len} {per_sec} {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

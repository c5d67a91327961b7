//! How long a region is away: after a clean stop, after kill -9, and when its view has to be built anew; and, with two regions or more,
//! how long it is behind its peer after an outage.
//!
//! A killed process leaves the page cache: what is measured is the store's own recovery, and not that of a disk whose power was cut.

use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use rustix::process::Signal;
use serde::Serialize;
use tokio::time::Instant;

use super::burst::Batches;
use super::fill::fill;
use super::{Before, Outcome};
use crate::BenchError;
use crate::deployment::{Deployment, Region};
use crate::drive::{self, Load};
use crate::options::{LoadOptions, Mode, refuse};
use crate::pace::Pace;
use crate::process::Process;
use crate::record::Records;
use crate::recorder::Measured;
use crate::target::Fault;

const SETTLE_PATIENCE: Duration = Duration::from_secs(600);
/// Calls in flight at most while a peer is away: enough for the rate, and below what isle takes at once (1,024), or the limit would
/// be what is measured.
const IN_FLIGHT: usize = 512;

#[derive(Args, Clone, Debug, Serialize)]
pub struct RecoveryOptions {
    #[command(flatten)]
    pub load: LoadOptions,
    /// Records that the region holds when it is stopped
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    pub records: u64,
    /// How long the second region stands still, where there is one
    #[arg(long, default_value_t = 10.0, value_name = "N")]
    pub outage_seconds: f64,
    /// Writes a second meanwhile, one by one
    #[arg(long, default_value_t = 20_000.0, value_name = "N")]
    pub outage_rate: f64,
}

impl RecoveryOptions {
    pub fn check(&self) -> Result<(), BenchError> {
        self.load.check()?;
        let positive = |number: f64| number.is_finite() && number > 0.0;
        refuse([
            (self.records == 0, "--records is at least 1".to_owned()),
            (!positive(self.outage_seconds), "--outage-seconds is more than 0".to_owned()),
            (!positive(self.outage_rate), "--outage-rate is more than 0".to_owned()),
        ])
    }

    pub async fn run(&self, deployment: &mut Deployment, round: u32, bar: &ProgressBar) -> Result<Outcome, BenchError> {
        let several = deployment.regions.len() > 1;
        let filled = fill(&deployment.first().target, &self.load, self.records, bar).await?;
        if several {
            deployment.until_settled(SETTLE_PATIENCE).await?;
        }
        let variant = if several { "restart and outage" } else { "restart" };
        let mut outcome = Outcome::new("recovery", variant, deployment, round).with(filled);
        let region = &mut deployment.regions[0];
        let clean = restart(region, End::Clean).await?;
        outcome.figure("clean_restart_seconds", Some(clean.as_secs_f64()));
        let killed = restart(region, End::Killed).await?;
        outcome.figure("killed_restart_seconds", Some(killed.as_secs_f64()));
        if has_view(region) {
            let rebuilt = restart(region, End::ViewLost).await?;
            outcome.figure("rebuild_seconds", Some(rebuilt.as_secs_f64()));
            outcome.figure("rebuilt_records_per_second", Some(self.records as f64 / rebuilt.as_secs_f64()));
        }
        if several {
            deployment.until_settled(SETTLE_PATIENCE).await?;
            self.outage(deployment, bar, &mut outcome).await?;
        }
        Ok(outcome)
    }

    /// The second region stands still while the first one takes writes; then it catches up.
    async fn outage(
        &self,
        deployment: &mut Deployment,
        bar: &ProgressBar,
        outcome: &mut Outcome,
    ) -> Result<(), BenchError> {
        process(&deployment.regions[1])?.signal(Signal::STOP)?;
        let missed = self.writes_meanwhile(deployment, bar).await;
        let before = Before::note(deployment).await;
        // Whatever came of the writes: a process that stands still cannot be stopped in a friendly way.
        process(&deployment.regions[1])?.signal(Signal::CONT)?;
        let (missed, before) = (missed?, before?);
        let began = Instant::now();
        deployment.until_settled(SETTLE_PATIENCE).await?;
        let took = began.elapsed().as_secs_f64();
        outcome.figure("catch_up_seconds", Some(took));
        outcome.figure("catch_up_deltas_per_second", Some(missed.applied as f64 / took));
        outcome.figure("outage_writes_done", Some(missed.applied as f64));
        outcome.figure("outage_writes_refused", Some(missed.refused as f64));
        outcome.figure("outage_writes_p99_ms", Some(missed.overall().at(0.99)));
        // Only what was missed may travel: a full copy would show as a figure far above that of a burst.
        let written_bytes = missed.applied * (self.load.key_bytes + self.load.value_bytes) as u64;
        before.egress(outcome, deployment, written_bytes).await
    }

    async fn writes_meanwhile(&self, deployment: &Deployment, bar: &ProgressBar) -> Result<Measured, BenchError> {
        let count = (self.outage_rate * self.outage_seconds) as u64;
        bar.set_length(count);
        let first = self.load.first_number() + self.records;
        let records = Records::new(self.load.shape(), self.load.seed.wrapping_add(1));
        let steps = Box::new(Batches { records, next: first, end: first + count, mode: Mode::Unary, batch: 1 });
        let mut lanes = deployment.first().target.lanes(IN_FLIGHT, self.load.connections).await?;
        let pace = Pace::Open { per_second: self.outage_rate };
        Ok(drive::calls(&mut lanes, Load { steps, pace, bar: bar.clone() }).await?)
    }
}

enum End {
    Clean,
    Killed,
    /// Killed, and the mark that its view rests on is gone: as after a power cut it has to be built anew, from checkpoint and log.
    ViewLost,
}

/// The file that isle's view cannot be trusted without.
const VIEW_MARK: &str = "VIEW";

fn has_view(region: &Region) -> bool {
    region.data_dir.as_ref().is_some_and(|path| path.join(VIEW_MARK).exists())
}

/// From the start of the new process to its first answer.
async fn restart(region: &mut Region, end: End) -> Result<Duration, BenchError> {
    let name = region.target.name();
    let process =
        region.process.as_mut().ok_or(Fault::Unsupported { target: name, what: "process of ours to stop" })?;
    match end {
        End::Clean => process.stop().await?,
        End::Killed | End::ViewLost => process.kill(),
    }
    if let (End::ViewLost, Some(path)) = (&end, &region.data_dir) {
        let mark = path.join(VIEW_MARK);
        std::fs::remove_file(&mark).map_err(|source| BenchError::of_file(&mark, source))?;
    }
    process.start_again()?;
    Ok(region.until_ready().await?)
}

fn process(region: &Region) -> Result<&Process, Fault> {
    let name = region.target.name();
    region.process.as_ref().ok_or(Fault::Unsupported { target: name, what: "process of ours to stop" })
}

//! The YCSB core workloads: a load phase that fills the store, and a run phase that is measured.

use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::time::Instant;

use super::fill::fill;
use super::{Before, Outcome};
use crate::BenchError;
use crate::chooser::Distribution;
use crate::deployment::{Deployment, Region};
use crate::drive::{self, Load, Step, Work};
use crate::mix::{Core, Kind, Mix, Operation};
use crate::options::{LoadOptions, PaceOptions, refuse};
use crate::record::Records;

/// A directory has settled when it has not changed for so long; a store works in the background for some time after a load.
const SETTLED_FOR: Duration = Duration::from_secs(15);
const SETTLE_PATIENCE: Duration = Duration::from_secs(300);
const SETTLE_POLL: Duration = Duration::from_millis(500);

#[derive(Args, Clone, Debug, Serialize)]
pub struct YcsbOptions {
    #[command(flatten)]
    pub load: LoadOptions,
    #[command(flatten)]
    pub pace: PaceOptions,
    #[arg(long, value_enum, default_value_t = Core::A)]
    pub core: Core,
    /// Records that the load phase writes
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    pub records: u64,
    /// Operations of the run phase
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    pub operations: u64,
    /// Which records are chosen (zipfian; latest for D)
    #[arg(long, value_enum)]
    pub distribution: Option<Distribution>,
    /// Calls in flight, over all connections
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub in_flight: usize,
    /// Waits until the directory does not change any more, and says what it takes then
    #[arg(long)]
    pub settle: bool,
}

impl YcsbOptions {
    pub fn check(&self) -> Result<(), BenchError> {
        self.load.check()?;
        self.pace.pace(1)?;
        refuse([
            (self.records == 0, "--records is at least 1".to_owned()),
            (self.operations == 0, "--operations is at least 1".to_owned()),
            (self.in_flight == 0, "--in-flight is at least 1".to_owned()),
        ])
    }

    pub async fn run(&self, deployment: &Deployment, round: u32, bar: &ProgressBar) -> Result<Outcome, BenchError> {
        let region = deployment.first();
        let filled = fill(&region.target, &self.load, self.records, bar).await?;
        let mut lanes = region.target.lanes(self.in_flight, self.load.connections).await?;
        bar.set_length(self.operations);
        let before = Before::note(deployment).await?;
        let steps = Box::new(self.steps());
        let load = Load { steps, pace: self.pace.pace(1)?, bar: bar.clone() };
        let measured = drive::calls(&mut lanes, load).await?;

        let variant = serde_json::to_value(self.core).ok().and_then(|name| Some(name.as_str()?.to_uppercase()));
        let mut outcome = Outcome::new("ycsb", variant.unwrap_or_default(), deployment, round).with(measured);
        outcome.figure("load_phase_per_second", Some(filled.per_second()));
        before.cost(&mut outcome, deployment);
        if self.settle {
            self.settle(region, &mut outcome).await?;
        }
        Ok(outcome)
    }

    fn steps(&self) -> impl Iterator<Item = Step> + Send + use<> {
        let distribution = self.distribution.unwrap_or(self.core.distribution());
        let mix = Mix::new(self.core, distribution, self.records, self.in_flight as u64, self.load.seed);
        let first = self.load.first_number();
        let mut records = Records::new(self.load.shape(), self.load.seed.wrapping_add(1));
        let operations = usize::try_from(self.operations).unwrap_or(usize::MAX);
        mix.take(operations).map(move |operation| step(operation, first, &mut records))
    }

    /// What the store takes once it has done what it puts off: beside the records that are live.
    async fn settle(&self, region: &Region, outcome: &mut Outcome) -> Result<(), BenchError> {
        let Some(mut bytes) = region.disk_bytes() else { return Ok(()) };
        let (began, mut unchanged_since) = (Instant::now(), Instant::now());
        while unchanged_since.elapsed() < SETTLED_FOR {
            if began.elapsed() > SETTLE_PATIENCE {
                return Err(BenchError::TooLong {
                    what: "the directory to settle",
                    seconds: SETTLE_PATIENCE.as_secs(),
                });
            }
            tokio::time::sleep(SETTLE_POLL).await;
            let now = region.disk_bytes().unwrap_or_default();
            if now != bytes {
                (bytes, unchanged_since) = (now, Instant::now());
            }
        }
        let vitals = region.target.vitals().await.unwrap_or_default();
        let records = if vitals.records > 0 { vitals.records } else { self.records };
        let live_bytes = (records * (self.load.key_bytes + self.load.value_bytes) as u64) as f64;
        outcome.figure("settled_disk_bytes_per_live_byte", Some(bytes as f64 / live_bytes));
        // A log may take what its budget allows: what is judged is the rest.
        let beside_log = bytes.saturating_sub(region.log_directory_bytes());
        outcome.figure("settled_bytes_beside_log_per_live_byte", Some(beside_log as f64 / live_bytes));
        let view = (vitals.view_bytes > 0).then_some(vitals.view_bytes as f64 / live_bytes);
        outcome.figure("settled_view_bytes_per_live_byte", view);
        // Of what is alive as it is stored, with versions and vectors: what the store can do nothing about is in both.
        if let Some(live) = vitals.view_live_bytes.filter(|live| *live > 0) {
            outcome.figure("settled_view_bytes_per_encoded_byte", Some(vitals.view_bytes as f64 / live as f64));
            outcome.figure("settled_bytes_beside_log_per_encoded_byte", Some(beside_log as f64 / live as f64));
        }
        let log = (vitals.log_bytes > 0).then_some(vitals.log_bytes as f64);
        outcome.figure("settled_log_bytes", log);
        Ok(())
    }
}

fn step(operation: Operation, first: u64, records: &mut Records) -> Step {
    let Operation { kind, number, entries } = operation;
    let number = first + number;
    let work = match kind {
        Kind::Read => Work::Get(records.key(number)),
        Kind::Update | Kind::Insert => Work::Put(records.record(number)),
        Kind::Scan => Work::Scan { start: records.key(number), entries: entries as usize },
        Kind::ReadModifyWrite => Work::ReadModifyWrite(records.record(number)),
    };
    Step { kind, work }
}

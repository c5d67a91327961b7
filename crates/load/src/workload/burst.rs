//! So many writes of fresh keys, as fast as the target takes them (or at a rate), and what they cost.

use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;

use super::{Before, Outcome};
use crate::BenchError;
use crate::deployment::Deployment;
use crate::drive::{self, Load, Step, Work};
use crate::mix::Kind;
use crate::options::{LoadOptions, Mode, PaceOptions, refuse};
use crate::record::{Record, Records};
use crate::recorder::Measured;
use crate::target::Lane;

/// How long regions may take to agree after the last write.
const SETTLE_PATIENCE: Duration = Duration::from_secs(300);
/// A warm-up fills caches and queues; more of it would only be more of the same.
const WARM_UP_MAX: u64 = 50_000;

#[derive(Args, Clone, Debug, Serialize)]
pub struct BurstOptions {
    #[command(flatten)]
    pub load: LoadOptions,
    #[command(flatten)]
    pub pace: PaceOptions,
    #[arg(long, value_enum, default_value_t = Mode::Unary)]
    pub mode: Mode,
    /// Writes that are measured
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    pub operations: u64,
    /// Writes before that, which are not (a tenth of --operations, 50,000 at most)
    #[arg(long, value_name = "N")]
    pub warm_up: Option<u64>,
    /// Calls or messages in flight, over all connections (unary 256, streamed and batched 16, pipelined 50)
    #[arg(long, value_name = "N")]
    pub in_flight: Option<usize>,
    /// Writes a call or message, where it carries many (100; pipelined 16)
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
}

impl BurstOptions {
    pub fn check(&self) -> Result<(), BenchError> {
        self.load.check()?;
        self.pace.pace(1)?;
        refuse([
            (self.operations == 0, "--operations is at least 1".to_owned()),
            (self.in_flight == Some(0), "--in-flight is at least 1".to_owned()),
            (self.batch == Some(0) || self.batch() > 1000, "--batch is from 1 to 1000".to_owned()),
        ])
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.unwrap_or(match self.mode {
            Mode::Unary => 256,
            Mode::Streamed | Mode::Batched => 16,
            Mode::Pipelined => 50,
        })
    }

    pub fn batch(&self) -> usize {
        match self.mode {
            Mode::Unary => 1,
            Mode::Pipelined => self.batch.unwrap_or(16),
            Mode::Streamed | Mode::Batched => self.batch.unwrap_or(100),
        }
    }

    fn warm_up(&self) -> u64 {
        self.warm_up.unwrap_or((self.operations / 10).min(WARM_UP_MAX))
    }

    /// As many lanes as carry what is in flight: a stream carries many messages.
    fn lanes(&self) -> usize {
        match self.mode {
            Mode::Streamed => self.load.connections.min(self.in_flight()),
            _ => self.in_flight(),
        }
    }

    pub async fn run(&self, deployment: &Deployment, round: u32, bar: &ProgressBar) -> Result<Outcome, BenchError> {
        let target = &deployment.first().target;
        let mut lanes = target.lanes(self.lanes(), self.load.connections).await?;
        let mut records = Records::new(self.load.shape(), self.load.seed);
        let first = self.load.first_number();
        let quiet = ProgressBar::hidden();
        self.write(&mut lanes, &mut records, first + self.operations, self.warm_up(), &quiet).await?;

        let before = Before::note(deployment).await?;
        let measured = self.write(&mut lanes, &mut records, first, self.operations, bar).await?;
        let mut outcome = Outcome::new("burst", self.mode.name(), deployment, round).with(measured);
        before.cost(&mut outcome, deployment);
        let record_bytes = (self.load.key_bytes + self.load.value_bytes) as u64;
        if deployment.regions.len() > 1 {
            let settled = deployment.until_settled(SETTLE_PATIENCE).await?;
            outcome.figure("settle_seconds", Some(settled.as_secs_f64()));
            let written_bytes = outcome.measured.applied * record_bytes;
            before.egress(&mut outcome, deployment, written_bytes).await?;
        }
        let live_bytes = (self.operations + self.warm_up()) * record_bytes;
        let disk = deployment.first().disk_bytes().map(|bytes| bytes as f64 / live_bytes as f64);
        outcome.figure("disk_bytes_per_live_byte", disk);
        Ok(outcome)
    }

    async fn write(
        &self,
        lanes: &mut Vec<Box<dyn Lane>>,
        records: &mut Records,
        first: u64,
        count: u64,
        bar: &ProgressBar,
    ) -> Result<Measured, BenchError> {
        bar.set_length(count);
        let pace = self.pace.pace(self.batch())?;
        let made = std::mem::replace(records, Records::new(self.load.shape(), self.load.seed ^ first));
        let steps =
            Box::new(Batches { records: made, next: first, end: first + count, mode: self.mode, batch: self.batch() });
        let load = Load { steps, pace, bar: bar.clone() };
        let measured = match self.mode {
            Mode::Streamed => {
                let window = self.in_flight() / lanes.len();
                drive::streams(lanes, window, load).await?
            }
            _ => drive::calls(lanes, load).await?,
        };
        Ok(measured)
    }
}

/// Writes of fresh keys, in the calls that a mode makes of them.
pub struct Batches {
    pub records: Records,
    pub next: u64,
    pub end: u64,
    pub mode: Mode,
    pub batch: usize,
}

impl Iterator for Batches {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.next >= self.end {
            return None;
        }
        let end = self.end.min(self.next + self.batch as u64);
        let mut taken = (self.next..end).map(|number| self.records.record(number));
        let work = match self.mode {
            Mode::Unary => Work::Put(taken.next()?),
            Mode::Pipelined => Work::Pipelined(taken.collect::<Vec<Record>>()),
            Mode::Streamed | Mode::Batched => Work::Batch(taken.collect::<Vec<Record>>()),
        };
        self.next = end;
        Some(Step { kind: Kind::Insert, work })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Shape;

    #[test]
    fn every_record_is_written_once_whatever_the_batch() {
        for (mode, batch) in [(Mode::Unary, 1), (Mode::Batched, 100), (Mode::Pipelined, 16)] {
            let records = Records::new(Shape::default(), 1);
            let steps = Batches { records, next: 5, end: 255, mode, batch };
            let written: Vec<Record> = steps
                .flat_map(|step| match step.work {
                    Work::Put(record) => vec![record],
                    Work::Batch(records) | Work::Pipelined(records) => records,
                    other => panic!("a burst writes: {other:?}"),
                })
                .collect();
            let mut expected = Records::new(Shape::default(), 1);
            assert_eq!(written, (5..255).map(|number| expected.record(number)).collect::<Vec<_>>());
        }
    }
}

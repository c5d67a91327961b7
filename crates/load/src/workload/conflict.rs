//! The same keys written in several regions at the same moment, and what became of the values.
//!
//! Every write is bound to the key's absence. A region that has seen another's value refuses its own, so where all regions answered
//! "done" the writes were concurrent for certain: each of their values has to be there afterwards, shown or as a sibling, and in
//! the ledger if it lost. A value that was acknowledged and is nowhere has vanished silently.

use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use futures::future::{join_all, try_join_all};
use futures::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::time::Instant;

use super::Outcome;
use crate::BenchError;
use crate::deployment::Deployment;
use crate::mix::Kind;
use crate::options::{LoadOptions, refuse};
use crate::record::{Record, Records};
use crate::recorder::{Done, Recorder};
use crate::target::{Answer, Fault, Lane};

#[derive(Args, Clone, Debug, Serialize)]
pub struct ConflictOptions {
    #[command(flatten)]
    pub load: LoadOptions,
    /// Keys that are written everywhere at once
    #[arg(long, default_value_t = 2_000, value_name = "N")]
    pub keys: u64,
    /// Keys under way at the same time
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub in_flight: usize,
    /// How long the regions may take to agree
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub settle_seconds: u64,
}

/// One lane to each region.
type Everywhere = Vec<Box<dyn Lane>>;

/// What the regions were asked to write for one key, and what they said.
struct Written {
    key: Bytes,
    /// Acknowledged values.
    values: Vec<Bytes>,
    everywhere: bool,
}

#[derive(Default)]
struct Verdict {
    differing: u64,
    vanished: u64,
}

impl ConflictOptions {
    pub fn check(&self) -> Result<(), BenchError> {
        self.load.check()?;
        refuse([
            (self.keys == 0, "--keys is at least 1".to_owned()),
            (self.in_flight == 0, "--in-flight is at least 1".to_owned()),
            (self.load.regions == Some(1), "conflicts need --regions of 2 at least".to_owned()),
        ])
    }

    pub async fn run(&self, deployment: &Deployment, round: u32, bar: &ProgressBar) -> Result<Outcome, BenchError> {
        let mut all = Vec::new();
        for _ in 0..self.in_flight {
            all.push(self.everywhere(deployment).await?);
        }
        bar.set_length(self.keys);
        let conflicts_before = self.conflicts(deployment).await?;
        let mut recorder = Recorder::start(Instant::now());
        let mut written = Vec::new();
        let mut records = Records::new(self.load.shape(), self.load.seed);
        let (mut next, end) = (self.load.first_number(), self.load.first_number() + self.keys);
        while next < end {
            let batch: Vec<Bytes> =
                (next..end.min(next + all.len() as u64)).map(|number| records.key(number)).collect();
            let writes = batch.iter().zip(&mut all).map(|(key, lanes)| {
                let values = lanes.iter().map(|_| records.value(next)).collect();
                write(key.clone(), values, lanes)
            });
            let writes: Vec<_> = writes.collect();
            let due = Instant::now();
            for outcome in join_all(writes).await {
                let outcome = outcome?;
                let done = Done { answer: Answer::applied(outcome.values.len() as u64), missing: false };
                recorder.note(Kind::Insert, due, Instant::now(), 1, Ok(done));
                written.push(outcome);
            }
            next += batch.len() as u64;
            bar.set_position(written.len() as u64);
        }

        let mut outcome = Outcome::new("conflict", "", deployment, round).with(recorder.finish());
        let settled = deployment.until_settled(Duration::from_secs(self.settle_seconds)).await;
        match settled {
            Ok(took) => outcome.figure("settle_seconds", Some(took.as_secs_f64())),
            // A store that does not say whether its regions agree is read all the same; so is one whose regions never do.
            Err(BenchError::Fault(Fault::Unsupported { .. })) => {
                tokio::time::sleep(Duration::from_secs(self.settle_seconds.min(5))).await;
            }
            Err(BenchError::TooLong { .. }) => outcome.figure("settle_seconds", Some(f64::INFINITY)),
            Err(other) => return Err(other),
        }
        let verdict = judge(&written, &mut all).await?;
        let concurrent = written.iter().filter(|written| written.everywhere).count();
        outcome.figure("keys", Some(self.keys as f64));
        outcome.figure("keys_written_concurrently", Some(concurrent as f64));
        outcome.figure("keys_that_differ", Some(verdict.differing as f64));
        outcome.figure("values_vanished_silently", Some(verdict.vanished as f64));
        let conflicts_after = self.conflicts(deployment).await?;
        let noted = conflicts_before.zip(conflicts_after).map(|(before, after)| (after - before) as f64);
        outcome.figure("conflicts_in_ledger", noted);
        Ok(outcome)
    }

    async fn everywhere(&self, deployment: &Deployment) -> Result<Everywhere, BenchError> {
        let lanes = deployment.regions.iter().map(|region| region.target.lanes(1, 1));
        Ok(try_join_all(lanes).await?.into_iter().flatten().collect())
    }

    /// Of the first region's ledger: once settled all regions know the same.
    async fn conflicts(&self, deployment: &Deployment) -> Result<Option<u64>, BenchError> {
        match deployment.first().target.vitals().await {
            Ok(vitals) => Ok(Some(vitals.conflicts)),
            Err(Fault::Unsupported { .. }) => Ok(None),
            Err(fault) => Err(fault.into()),
        }
    }
}

async fn write(key: Bytes, values: Vec<Bytes>, lanes: &mut Everywhere) -> Result<Written, Fault> {
    let puts = lanes.iter_mut().zip(&values).map(|(lane, value)| {
        let record = Record { key: key.clone(), value: value.clone() };
        async move { lane.put_if_absent(&record).await }
    });
    let done = try_join_all(puts).await?;
    let everywhere = done.iter().all(|done| *done);
    let values = values.into_iter().zip(done).filter(|(_, done)| *done).map(|(value, _)| value).collect();
    Ok(Written { key, values, everywhere })
}

async fn judge(written: &[Written], all: &mut [Everywhere]) -> Result<Verdict, BenchError> {
    let mut verdict = Verdict::default();
    for some in written.chunks(all.len()) {
        let reads = stream::iter(some.iter().zip(all.iter_mut())).map(|(written, lanes)| read(written, lanes));
        let read: Vec<(bool, u64)> = reads.buffered(some.len()).try_collect().await?;
        for (same, vanished) in read {
            verdict.differing += u64::from(!same);
            verdict.vanished += vanished;
        }
    }
    Ok(verdict)
}

/// Whether all regions hold the same, and how many acknowledged values none of them knows.
async fn read(written: &Written, lanes: &mut Everywhere) -> Result<(bool, u64), Fault> {
    let mut seen = try_join_all(lanes.iter_mut().map(|lane| lane.get_all(&written.key))).await?;
    let vanished = written.values.iter().filter(|value| !seen.iter().any(|values| values.contains(value))).count();
    let shown: Vec<Option<Bytes>> = seen.iter().map(|values| values.first().cloned()).collect();
    seen.iter_mut().for_each(|values| values.sort());
    let same = shown.windows(2).all(|pair| pair[0] == pair[1]) && seen.windows(2).all(|pair| pair[0] == pair[1]);
    Ok((same, vanished as u64))
}

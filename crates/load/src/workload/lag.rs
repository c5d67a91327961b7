//! A write here, and how long until a reader over there sees it. Between the regions nothing delays the links.
//!
//! It cannot be less than two syncs, one at each end: these are measured beside it, in the same moments on the same disk. The reader
//! asks again as soon as it is answered, so that what it adds is below one read, which is shown too.

use std::convert::Infallible;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Outcome;
use super::burst::Batches;
use crate::BenchError;
use crate::deployment::Deployment;
use crate::drive::{self, Load};
use crate::latency::Latency;
use crate::mix::Kind;
use crate::options::{LoadOptions, Mode, refuse};
use crate::pace::Pace;
use crate::record::Records;
use crate::recorder::{Done, Recorder};
use crate::target::{Answer, Fault, Lane};

/// A write that has not come over by then counts as lost.
const VISIBLE_PATIENCE: Duration = Duration::from_secs(60);
/// Keeps the probes' keys away from the load's.
const PROBE_NUMBERS: u64 = 1 << 31;
const SYNC_BYTES: usize = 4096;
const SYNC_FILE_BYTES: u64 = 8 << 20;

#[derive(Args, Clone, Debug, Serialize)]
pub struct LagOptions {
    #[command(flatten)]
    pub load: LoadOptions,
    /// Writes that are followed
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    pub samples: u64,
    /// Followed writes a second, at most
    #[arg(long, default_value_t = 100.0, value_name = "N")]
    pub sample_rate: f64,
    /// Other writes a second meanwhile: 0 is idle, `max` as fast as the region takes them
    #[arg(long, default_value = "0", value_name = "N")]
    pub background: Background,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Background {
    Idle,
    Rate(f64),
    Max,
}

impl std::str::FromStr for Background {
    type Err = String;

    fn from_str(text: &str) -> Result<Background, String> {
        match text.parse::<f64>() {
            Ok(0.0) => Ok(Background::Idle),
            Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(Background::Rate(rate)),
            _ if text == "max" => Ok(Background::Max),
            _ => Err("a number of writes a second, or `max`".to_owned()),
        }
    }
}

impl LagOptions {
    pub fn check(&self) -> Result<(), BenchError> {
        self.load.check()?;
        refuse([
            (self.samples == 0, "--samples is at least 1".to_owned()),
            (!(self.sample_rate.is_finite() && self.sample_rate > 0.0), "--sample-rate is more than 0".to_owned()),
            (self.load.regions == Some(1), "lag needs --regions of 2 at least".to_owned()),
        ])
    }

    pub fn variant(&self) -> String {
        match self.background {
            Background::Idle => "idle".to_owned(),
            Background::Rate(rate) => format!("at {rate}/s"),
            Background::Max => "saturated".to_owned(),
        }
    }

    pub async fn run(&self, deployment: &Deployment, round: u32, bar: &ProgressBar) -> Result<Outcome, BenchError> {
        bar.set_length(self.samples);
        let here = deployment.first().target.lanes(1, 1).await?.remove(0);
        let there = deployment.regions[1].target.lanes(1, 1).await?.remove(0);
        let syncs = Syncs::start(&self.load.directory())?;
        let probes = self.probes(here, there, &syncs, bar);
        let probes = tokio::select! {
            probes = probes => probes?,
            ended = self.other_writes(deployment) => match ended {
                Ok(never) => match never {},
                Err(error) => return Err(error),
            },
        };
        let mut outcome = Outcome::new("lag", self.variant(), deployment, round).with(probes.recorder.finish());
        outcome.figure("two_syncs_p50_ms", Some(probes.syncs.at(0.5)));
        outcome.figure("two_syncs_p99_ms", Some(probes.syncs.at(0.99)));
        outcome.figure("one_read_p50_ms", Some(probes.reads.at(0.5)));
        let overall = outcome.measured.overall();
        outcome.figure("p50_per_two_syncs", Some(overall.at(0.5) / probes.syncs.at(0.5)));
        outcome.figure("p99_per_two_syncs", Some(overall.at(0.99) / probes.syncs.at(0.99)));
        Ok(outcome)
    }

    /// Goes on until the probes have ended.
    async fn other_writes(&self, deployment: &Deployment) -> Result<Infallible, BenchError> {
        // At full speed in batches, as a bulk load would; at a rate one by one, as users do.
        let (mode, batch, in_flight, pace) = match self.background {
            Background::Idle => return std::future::pending().await,
            Background::Rate(per_second) => (Mode::Unary, 1, 256, Pace::Open { per_second }),
            Background::Max => (Mode::Batched, 100, 8, Pace::Closed),
        };
        let first = self.load.first_number();
        let records = Records::new(self.load.shape(), self.load.seed);
        let steps = Box::new(Batches { records, next: first, end: first + PROBE_NUMBERS, mode, batch });
        let mut lanes = deployment.first().target.lanes(in_flight, self.load.connections).await?;
        let load = Load { steps, pace, bar: ProgressBar::hidden() };
        let measured = drive::calls(&mut lanes, load).await?;
        let reason = measured.reason.unwrap_or_else(|| "it has run out of numbers".to_owned());
        Err(Fault::Refused(format!("the load beside the probes ended: {reason}")).into())
    }

    async fn probes(
        &self,
        mut here: Box<dyn Lane>,
        mut there: Box<dyn Lane>,
        syncs: &Syncs,
        bar: &ProgressBar,
    ) -> Result<Probes, BenchError> {
        let began = Instant::now();
        let mut records = Records::new(self.load.shape(), self.load.seed.wrapping_add(1));
        let mut probes =
            Probes { recorder: Recorder::start(began), syncs: Latency::default(), reads: Latency::default() };
        let first = self.load.first_number() + PROBE_NUMBERS;
        for number in 0..self.samples {
            tokio::time::sleep_until(began + Duration::from_secs_f64(number as f64 / self.sample_rate)).await;
            let record = records.record(first + number);
            let sent = Instant::now();
            // Both at once: a reader may see it before the writer hears of it.
            let reading = async {
                loop {
                    let asked = Instant::now();
                    let seen = there.get(&record.key).await?;
                    probes.reads.note(asked.elapsed());
                    if seen.as_ref() == Some(&record.value) {
                        return Ok(());
                    }
                    if sent.elapsed() > VISIBLE_PATIENCE {
                        return Err(Fault::Refused(format!("not visible after {} s", VISIBLE_PATIENCE.as_secs())));
                    }
                }
            };
            let (written, seen) = tokio::join!(here.put(&record), reading);
            written?;
            let outcome = seen.map(|()| Done { answer: Answer::applied(1), missing: false });
            probes.recorder.note(Kind::Insert, sent, Instant::now(), 1, outcome);
            probes.syncs.note(syncs.two().await?);
            bar.inc(1);
        }
        Ok(probes)
    }
}

struct Probes {
    recorder: Recorder,
    syncs: Latency,
    reads: Latency,
}

/// A thread that writes and syncs two files, one after the other: what a write has behind it when both regions have it.
struct Syncs {
    asked: mpsc::UnboundedSender<oneshot::Sender<std::io::Result<Duration>>>,
}

impl Syncs {
    #[allow(clippy::disallowed_methods, reason = "a sync blocks, and the load is never simulated")]
    fn start(place: &Path) -> Result<Syncs, BenchError> {
        let fault = |source| BenchError::of_file(place, source);
        let files = [preallocated(place).map_err(fault)?, preallocated(place).map_err(fault)?];
        let (asked, mut asking) = mpsc::unbounded_channel::<oneshot::Sender<std::io::Result<Duration>>>();
        let run = move || {
            let mut at = 0;
            while let Some(answer) = asking.blocking_recv() {
                let began = Instant::now();
                let synced = files.iter().try_for_each(|file| {
                    file.write_all_at(&[1; SYNC_BYTES], at)?;
                    file.sync_data()
                });
                at = (at + SYNC_BYTES as u64) % SYNC_FILE_BYTES;
                // Whoever has gone away does not want to know.
                let _ = answer.send(synced.map(|()| began.elapsed()));
            }
        };
        std::thread::Builder::new().name("syncs".to_owned()).spawn(run).map_err(fault)?;
        Ok(Syncs { asked })
    }

    async fn two(&self) -> Result<Duration, BenchError> {
        let (answer, answered) = oneshot::channel();
        let gone = || Fault::Refused("the thread that syncs has ended".to_owned());
        self.asked.send(answer).map_err(|_| gone())?;
        let took = answered.await.map_err(|_| gone())?;
        Ok(took.map_err(|error| Fault::Refused(format!("a sync failed: {error}")))?)
    }
}

/// Without a name: it is gone with the process.
fn preallocated(place: &Path) -> std::io::Result<File> {
    let file = tempfile::tempfile_in(place)?;
    file.write_all_at(&vec![0; SYNC_FILE_BYTES as usize], 0)?;
    file.sync_all()?;
    Ok(file)
}

//! What is done to a store, and what is looked at. One file a workload: its flags, the load, the figures.

pub mod burst;
pub mod conflict;
mod fill;
pub mod lag;
pub mod recovery;
pub mod ycsb;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::BenchError;
use crate::deployment::Deployment;
use crate::recorder::Measured;
use crate::target::Fault;

/// What came of one round of one workload at one target.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub workload: &'static str,
    /// The mode of a burst, the core of YCSB.
    pub variant: String,
    pub target: &'static str,
    /// What tables and charts call it: the target, and more where one target is in them twice.
    pub label: String,
    pub durability: &'static str,
    pub round: u32,
    pub regions: usize,
    pub per_second: f64,
    #[serde(flatten)]
    pub measured: Measured,
    /// What else the workload looked at, by name; the unit comes last.
    pub figures: BTreeMap<&'static str, f64>,
}

impl Outcome {
    pub fn new(workload: &'static str, variant: impl Into<String>, deployment: &Deployment, round: u32) -> Outcome {
        let target = &deployment.first().target;
        Outcome {
            workload,
            variant: variant.into(),
            target: target.name(),
            label: target.name().to_owned(),
            durability: target.durability(),
            round,
            regions: deployment.regions.len(),
            per_second: 0.0,
            measured: Measured::default(),
            figures: BTreeMap::new(),
        }
    }

    pub fn with(mut self, measured: Measured) -> Outcome {
        self.per_second = measured.per_second();
        self.measured = measured;
        self
    }

    pub fn figure(&mut self, name: &'static str, value: Option<f64>) {
        if let Some(value) = value {
            self.figures.insert(name, value);
        }
    }
}

/// What the servers had used and sent before a load, to be taken from what they have afterwards.
pub struct Before {
    cpu_seconds: Option<f64>,
    egress_bytes: Option<u64>,
}

impl Before {
    pub async fn note(deployment: &Deployment) -> Result<Before, BenchError> {
        Ok(Before { cpu_seconds: cpu_seconds(deployment), egress_bytes: egress_bytes(deployment).await? })
    }

    /// Processor time of all server processes for a million operations, and their largest peak of memory. The load has just ended.
    pub fn cost(&self, outcome: &mut Outcome, deployment: &Deployment) {
        let millions = outcome.measured.applied as f64 / 1e6;
        let cpu = self.cpu_seconds.zip(cpu_seconds(deployment)).map(|(before, after)| (after - before) / millions);
        outcome.figure("server_cpu_seconds_per_million", cpu.filter(|figure| figure.is_finite()));
        let peaks = deployment.regions.iter().filter_map(|region| region.usage()).map(|usage| usage.peak_rss_bytes);
        outcome.figure("server_peak_rss_bytes", peaks.max().map(|bytes| bytes as f64));
    }

    /// Bytes that the first region sent to one peer for each byte written. Everything written has arrived.
    pub async fn egress(
        &self,
        outcome: &mut Outcome,
        deployment: &Deployment,
        written_bytes: u64,
    ) -> Result<(), BenchError> {
        let peers = deployment.regions.len() - 1;
        let after = egress_bytes(deployment).await?;
        if let Some((before, after)) = self.egress_bytes.zip(after).filter(|_| peers > 0 && written_bytes > 0) {
            let figure = (after - before) as f64 / peers as f64 / written_bytes as f64;
            outcome.figure("egress_bytes_per_peer_per_written_byte", Some(figure));
        }
        Ok(())
    }
}

fn cpu_seconds(deployment: &Deployment) -> Option<f64> {
    deployment.regions.iter().map(|region| region.usage().map(|usage| usage.cpu_seconds)).sum()
}

async fn egress_bytes(deployment: &Deployment) -> Result<Option<u64>, BenchError> {
    match deployment.first().target.vitals().await {
        Ok(vitals) => Ok(Some(vitals.peers.iter().map(|peer| peer.egress_bytes).sum())),
        Err(Fault::Unsupported { .. }) => Ok(None),
        Err(fault) => Err(fault.into()),
    }
}

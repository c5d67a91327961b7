//! The flags that `isle bench` and `isle-bench` share.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::BenchError;
use crate::deployment::FLOOR_FILE_BYTES;
use crate::pace::Pace;
use crate::record::{KEY_BYTES_MIN, Shape, ValueKind};

/// Keeps keys of different seeds apart, and leaves room for four thousand million records of each.
const NUMBERS_A_SEED: u64 = 1 << 32;

/// What every workload takes.
#[derive(Args, Clone, Debug, Serialize)]
pub struct LoadOptions {
    /// All keys, values and choices follow from it
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    #[arg(long, default_value_t = 24, value_name = "N")]
    pub key_bytes: usize,
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub value_bytes: usize,
    /// What values are made of
    #[arg(long, value_enum, default_value_t = ValueKind::Random)]
    pub value: ValueKind,
    /// HTTP/2 connections that requests share (redis, which cannot share, opens one for each in flight)
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub connections: usize,
    /// Rounds; targets take turns, each round starts anew, and the median is shown
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub repeats: u32,
    /// Region nodes to start (or to use, of a running cluster)
    #[arg(long, value_name = "N")]
    pub regions: Option<usize>,
    /// The keyspace of isle
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub keyspace: String,
    /// Where the servers' temporary directories are made
    #[arg(long, value_name = "DIR")]
    #[serde(skip)]
    pub directory: Option<PathBuf>,
    /// Writes charts (SVG) into this directory
    #[arg(long, value_name = "DIR")]
    #[serde(skip)]
    pub plot: Option<PathBuf>,
}

impl LoadOptions {
    pub fn check(&self) -> Result<(), BenchError> {
        let faults = [
            (self.key_bytes < KEY_BYTES_MIN, format!("--key-bytes is at least {KEY_BYTES_MIN}")),
            (self.key_bytes > 4096, "--key-bytes is at most 4096".to_owned()),
            (self.value_bytes > 1 << 20, "--value-bytes is at most 1048576".to_owned()),
            (self.connections == 0, "--connections is at least 1".to_owned()),
            (self.repeats == 0, "--repeats is at least 1".to_owned()),
            (self.regions == Some(0), "--regions is at least 1".to_owned()),
        ];
        refuse(faults)
    }

    pub fn shape(&self) -> Shape {
        Shape { key_bytes: self.key_bytes, value_bytes: self.value_bytes, value: self.value }
    }

    pub fn directory(&self) -> PathBuf {
        self.directory.clone().unwrap_or_else(std::env::temp_dir)
    }

    /// The number of the first record.
    pub fn first_number(&self) -> u64 {
        self.seed.wrapping_mul(NUMBERS_A_SEED)
    }
}

/// Names everything that is wrong at once.
pub fn refuse<const N: usize>(faults: [(bool, String); N]) -> Result<(), BenchError> {
    let facts: Vec<String> = faults.into_iter().filter(|(wrong, _)| *wrong).map(|(_, fact)| fact).collect();
    if facts.is_empty() { Ok(()) } else { Err(BenchError::Usage(facts.join("; "))) }
}

/// How writes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One call a write
    Unary,
    /// One stream a connection, of messages of --batch writes
    Streamed,
    /// One call for --batch writes
    Batched,
    /// --batch requests sent before the first is answered (redis)
    Pipelined,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::Unary => "unary",
            Mode::Streamed => "streamed",
            Mode::Batched => "batched",
            Mode::Pipelined => "pipelined",
        }
    }
}

/// A closed loop, unless a rate is given.
#[derive(Args, Clone, Copy, Debug, Serialize)]
pub struct PaceOptions {
    /// Operations that begin a second, however fast they are answered (an open loop); without it the next begins when one ends
    #[arg(long, value_name = "N")]
    pub rate: Option<f64>,
}

impl PaceOptions {
    /// `operations` travel in one call.
    pub fn pace(self, operations: usize) -> Result<Pace, BenchError> {
        match self.rate {
            None => Ok(Pace::Closed),
            Some(rate) if rate.is_finite() && rate > 0.0 => Ok(Pace::Open { per_second: rate / operations as f64 }),
            Some(_) => Err(BenchError::Usage("--rate is more than 0".to_owned())),
        }
    }
}

/// What the floor's own process is started with.
#[derive(Args, Clone, Debug)]
pub struct FloorOptions {
    #[arg(long)]
    pub listen: SocketAddr,
    #[arg(long)]
    pub file: PathBuf,
    #[arg(long, default_value_t = FLOOR_FILE_BYTES)]
    pub file_bytes: u64,
    #[arg(long, default_value_t = 1)]
    pub runtime_threads: usize,
}

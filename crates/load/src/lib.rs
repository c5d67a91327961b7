//! Load for isle and what it is compared with: what `isle bench` and `isle-bench` share.
//!
//! ```text
//! random ─ record ─ chooser ─ mix        what is written and read: pure, from a seed
//! target ─ channel                       a store behind one trait: isle, floor (isle-bench adds others)
//! floor                                  the server that does nothing but append and sync
//! process ─ deployment                   servers of its own, and what they cost
//! pace ─ drive ─ recorder ─ latency      operations in, figures out
//! workload ─ bench                       what is done, in rounds
//! options ─ report, chart ─ machine      what is asked for, and how it is shown
//! ```
//! The law it keeps: every target gets the same keys, values and order from the same code under the same clock, and a figure is
//! printed with the settings that it was measured under.

pub mod bench;
pub mod channel;
pub mod chart;
pub mod chooser;
pub mod deployment;
pub mod drive;
pub mod floor;
pub mod latency;
pub mod machine;
pub mod mix;
pub mod options;
pub mod pace;
pub mod process;
pub mod random;
pub mod record;
pub mod recorder;
pub mod report;
pub mod target;
pub mod workload;

use std::path::{Path, PathBuf};

/// Why a benchmark came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// It cannot be meant so.
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Fault(#[from] target::Fault),
    #[error(transparent)]
    Process(#[from] process::ProcessError),
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("the chart {}: {fact}", path.display())]
    Chart { path: PathBuf, fact: String },
    #[error("waited {seconds} s for {what}")]
    TooLong { what: &'static str, seconds: u64 },
    #[error(transparent)]
    Floor(#[from] floor::FloorError),
}

impl BenchError {
    pub fn of_file(path: &Path, source: std::io::Error) -> BenchError {
        BenchError::File { path: path.to_owned(), source }
    }
}

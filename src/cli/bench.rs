//! Load on isle, and on the floor beside it. Without --endpoint the servers are processes of this same binary, in directories
//! of their own, and gone at the end.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use isle_load::BenchError;
use isle_load::bench::{self, Workload};
use isle_load::chart;
use isle_load::deployment::{AttachIsle, FLOOR_FILE_BYTES, StartFloor, StartIsle, Starter};
use isle_load::floor;
use isle_load::machine::Machine;
use isle_load::options::{FloorOptions, LoadOptions};
use isle_load::report;
use isle_load::workload::Outcome;
use serde_json::json;
use tokio::sync::watch;

use super::{Failure, Global, signals};
use crate::output;

#[derive(Args)]
pub struct Bench {
    /// Whom to measure, in turns
    #[arg(long, global = true, value_enum, value_delimiter = ',', default_value = "isle", value_name = "NAMES")]
    target: Vec<TargetName>,
    /// Worker threads of the floor; isle uses one
    #[arg(long, global = true, default_value_t = 1, value_name = "N")]
    runtime_threads: usize,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TargetName {
    Isle,
    /// A bare server that appends each request to a file with a group fdatasync
    Floor,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Workload(Workload),
    /// Serves the floor
    #[command(hide = true)]
    FloorServer(FloorOptions),
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Failure {
        match error {
            BenchError::Usage(fact) => Failure::Usage(fact),
            other => Failure::Local(other.into()),
        }
    }
}

impl Bench {
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let stop = signals::stop()?;
        let workload = match &self.command {
            Command::FloorServer(options) => {
                return Ok(floor::run(options.clone(), stopped(stop)).await.map_err(BenchError::from)?);
            }
            Command::Workload(workload) => workload,
        };
        let starters = self.starters(workload.load(), global)?;
        settings(workload, &starters, global)?;
        let report = |outcome: &Outcome| {
            if global.is_json()
                && let Ok(line) = serde_json::to_string(outcome)
                && let Err(error) = output::line(&line)
            {
                tracing::warn!(%error, "stdout is gone");
            }
        };
        // Dropped by a signal, the run takes its servers with it.
        let outcomes = tokio::select! {
            outcomes = bench::run(workload, &starters, report) => outcomes?,
            () = stopped(stop) => return Err(anyhow::anyhow!("stopped by a signal; so are the servers").into()),
        };
        if !global.is_json() {
            report::table(&outcomes).iter().try_for_each(|line| output::line(line))?;
        }
        if let Some(directory) = &workload.load().plot {
            chart::plot(directory, &workload.title(), &outcomes)?;
        }
        Ok(())
    }

    fn starters(&self, load: &LoadOptions, global: &Global) -> Result<Vec<Box<dyn Starter>>, Failure> {
        let program = std::env::current_exe().context("this program's own path")?;
        let keyspace = load.keyspace.clone();
        let starter = |name: &TargetName| -> Box<dyn Starter> {
            match (name, &global.endpoint) {
                (TargetName::Isle, Some(endpoint)) => {
                    Box::new(AttachIsle { endpoint: endpoint.clone(), keyspace: keyspace.clone() })
                }
                (TargetName::Isle, None) => Box::new(StartIsle {
                    program: program.clone(),
                    place: load.directory(),
                    keyspace: keyspace.clone(),
                }),
                (TargetName::Floor, _) => Box::new(self.floor(program.clone(), load)),
            }
        };
        Ok(self.target.iter().map(starter).collect())
    }

    fn floor(&self, program: PathBuf, load: &LoadOptions) -> StartFloor {
        StartFloor {
            program,
            arguments: ["bench", "floor-server"].map(OsString::from).to_vec(),
            place: load.directory(),
            runtime_threads: self.runtime_threads,
            echo_bytes: load.value_bytes,
            file_bytes: FLOOR_FILE_BYTES,
        }
    }
}

/// What the figures were measured with: no figure means anything without it.
fn settings(workload: &Workload, starters: &[Box<dyn Starter>], global: &Global) -> Result<(), Failure> {
    let machine = Machine::of(&workload.load().directory());
    if machine.syncs_for_free() {
        tracing::warn!(file_system = machine.file_system, "syncs cost nothing here: give a --directory on a disk");
    }
    let version = env!("CARGO_PKG_VERSION");
    let targets: Vec<&str> = starters.iter().map(|starter| starter.name()).collect();
    let settings = serde_json::to_value(workload).context("settings as JSON")?;
    if global.is_json() {
        let line = json!({ "settings": settings, "targets": targets, "machine": machine, "version": version });
        return Ok(output::line(&line.to_string())?);
    }
    report::heading("isle", version, &machine, &settings).iter().try_for_each(|line| output::line(line))?;
    Ok(())
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // The sender lives as long as the process.
    let _ = stop.wait_for(|stop| *stop).await;
}

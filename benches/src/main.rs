//! `isle-bench`: isle beside what people run today, with the same load, clock and machine.
//!
//! ```text
//! main ── stores ── etcd                 stores behind isle-load's trait, and how each is started
//!    │      ├───── redis ── resp
//!    │      └───── sled_alone
//!    └─── peers ── rows ── goals         side by side, in turns, against DESIGN's ratios
//! ```
//! The law it keeps: what is started here is stopped here, by its own process id.

mod etcd;
mod goals;
mod peers;
mod redis;
mod resp;
mod rows;
mod sled_alone;
mod stores;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use isle_load::bench::{self, Workload};
use isle_load::machine::Machine;
use isle_load::options::FloorOptions;
use isle_load::{chart, floor, report};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use peers::Peers;
use stores::{Store, Stores};

/// The same as the server's: the floor is this program too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "isle-bench", version, about = "isle beside etcd, Redis, KeyDB and the floor", long_about = None)]
struct Cli {
    /// How results are printed
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    /// Whom to measure, in turns
    #[arg(long, global = true, value_enum, value_delimiter = ',', default_value = "isle,floor", value_name = "NAMES")]
    target: Vec<Store>,
    #[command(flatten)]
    stores: Stores,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Workload(Workload),
    /// All rows of DESIGN's table, side by side in alternating rounds
    Peers(Peers),
    /// Serves the floor
    #[command(hide = true)]
    FloorServer(FloorOptions),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // One thread: the load shares the machine with what it measures.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.context("the runtime").and_then(|runtime| runtime.block_on(run(cli)));
    match done {
        Ok(all_reached) => ExitCode::from(u8::from(!all_reached)),
        Err(error) => {
            eprintln!("isle-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every goal was reached, where there are any.
async fn run(cli: Cli) -> anyhow::Result<bool> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stopped = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    match &cli.command {
        Command::FloorServer(options) => {
            floor::run(options.clone(), stopped).await?;
            Ok(true)
        }
        // Dropped by a signal, a run takes its servers with it.
        Command::Workload(workload) => tokio::select! {
            done = cli.workload(workload) => done.map(|()| true),
            () = stopped => anyhow::bail!("stopped by a signal; so are the servers"),
        },
        Command::Peers(peers) => tokio::select! {
            done = peers.run(&cli.stores, cli.output == Format::Json) => done,
            () = stopped => anyhow::bail!("stopped by a signal; so are the servers"),
        },
    }
}

impl Cli {
    async fn workload(&self, workload: &Workload) -> anyhow::Result<()> {
        let json = self.output == Format::Json;
        let machine = Machine::of(&workload.load().directory());
        if machine.syncs_for_free() {
            eprintln!("isle-bench: syncs cost nothing on {}: give a --directory on a disk", machine.file_system);
        }
        let settings = serde_json::to_value(workload)?;
        let version = env!("CARGO_PKG_VERSION");
        let starters = self.target.iter().map(|store| self.stores.starter(*store, workload.load()));
        let starters = starters.collect::<anyhow::Result<Vec<_>>>()?;
        if json {
            println!("{}", json!({ "settings": settings, "machine": machine, "version": version }));
        } else {
            report::heading("isle-bench", version, &machine, &settings).iter().for_each(|line| println!("{line}"));
        }
        let show = |outcome: &_| match serde_json::to_string(outcome) {
            Ok(line) if json => println!("{line}"),
            _ => {}
        };
        let outcomes = bench::run(workload, &starters, show).await?;
        if !json {
            report::table(&outcomes).iter().for_each(|line| println!("{line}"));
        }
        if let Some(directory) = &workload.load().plot {
            chart::plot(directory, &workload.title(), &outcomes)?;
        }
        Ok(())
    }
}

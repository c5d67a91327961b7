//! The command line: one file a command. A command returns what went wrong; this file decides how it is shown and which
//! exit code it gets: 0 done, 1 failed, 2 bad usage.

mod bench;
mod delete;
mod dev;
mod doctor;
mod egress;
mod export;
mod get;
mod import;
mod incr;
mod keyspace;
mod link;
mod move_homes;
mod patch;
mod put;
mod region;
mod scan;
mod serve;
mod ship;
mod signals;
mod status;
mod value;
mod write_flags;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use isle_client::{Client, Options};

use crate::causes::causes;
use crate::output::{self, Format};
use crate::units;

/// Where `isle dev` and a node with the usual ports serve.
const USUAL_ENDPOINT: &str = "http://127.0.0.1:7400";

#[derive(Parser)]
#[command(name = "isle", version, about = "A distributed region-affine key-value store", long_about = None)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args, Clone)]
pub struct Global {
    /// The region to talk to [default: http://127.0.0.1:7400; `bench` starts servers of its own]
    #[arg(long, global = true, env = "ISLE_ENDPOINT", value_name = "URL")]
    endpoint: Option<String>,
    /// How results and errors are printed
    #[arg(long, global = true, value_enum, default_value_t, env = "ISLE_OUTPUT", value_name = "FORMAT")]
    output: Format,
    /// PEM of the authority behind https endpoints
    #[arg(long, global = true, env = "ISLE_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// How long a call may take
    #[arg(long, global = true, value_parser = units::duration, default_value = "10s", value_name = "SPAN")]
    timeout: Duration,
    /// How logs are written to stderr; ISLE_LOG sets what is logged (such as `info,isle=debug`)
    #[arg(long, global = true, value_enum, default_value_t, env = "ISLE_LOG_FORMAT", value_name = "FORMAT")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Run a whole cluster in one process, on loopback, to try things out
    Dev(dev::Dev),
    /// Run one region's node
    Serve(serve::Serve),
    /// Write a value
    Put(put::Put),
    /// Read a key
    Get(get::Get),
    /// Delete a key
    Delete(delete::Delete),
    /// Write some fields of a document
    Patch(patch::Patch),
    /// Add to a counter
    Incr(incr::Incr),
    /// List keys in order
    Scan(scan::Scan),
    /// Load JSON lines as documents
    Import(import::Import),
    /// Write all of a keyspace as JSON lines
    Export(export::Export),
    /// Make, show, change and delete keyspaces, one by one or from a file
    Keyspace(keyspace::Keyspace),
    /// Make another region the home of keys, while they are read and written
    Move(move_homes::Move),
    /// Ship what a region has written into a keyspace to the others now, whatever its tier
    Ship(ship::Ship),
    /// Let a region into the running cluster, or take one out
    Region(region::Region),
    /// Show every region: records, digests, conflicts, lag
    Status(status::Status),
    /// Show what regions have sent each other, by keyspace and cause, and what it cost
    Egress(egress::Egress),
    /// Check a stopped node's data directory, and repair it
    Doctor(doctor::Doctor),
    /// Cut, heal or slow the links of `isle dev`
    Link(link::Link),
    /// Put load on isle, and on what it is compared with
    Bench(bench::Bench),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command cannot be meant so: exit code 2.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Server(#[from] isle_client::Error),
    /// What was to be so is not.
    #[error("{0}")]
    Drift(String),
    #[error("{}", causes(.0.as_ref()))]
    Local(#[from] anyhow::Error),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::Local(error.into())
    }
}

impl Global {
    async fn client(&self) -> Result<Client, Failure> {
        self.client_of(self.endpoint.as_deref().unwrap_or(USUAL_ENDPOINT)).await
    }

    async fn client_of(&self, endpoint: &str) -> Result<Client, Failure> {
        Ok(Client::connect_with(endpoint, self.options()?).await?)
    }

    fn options(&self) -> Result<Options, Failure> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| Failure::Usage(format!("--ca {}: {error}", path.display())))
        };
        Ok(Options { timeout: self.timeout, ca_pem: self.ca.as_ref().map(read).transpose()?, ..Options::default() })
    }

    fn is_json(&self) -> bool {
        self.output == Format::Json
    }
}

/// Runs the command line to its end.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr(cli.global.log_format, matches!(cli.command, Command::Serve(_)));
    let format = cli.global.output;
    match carry_out(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            show(&failure, format);
            ExitCode::from(if matches!(failure, Failure::Usage(_)) { 2 } else { 1 })
        }
    }
}

fn carry_out(cli: Cli) -> Result<(), Failure> {
    // One thread: the commands wait for the network, and a node runs all its shards on one faster than on two.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let global = &cli.global;
    runtime.block_on(async {
        match cli.command {
            Command::Dev(command) => command.run(global).await,
            Command::Serve(command) => command.run().await,
            Command::Put(command) => command.run(global).await,
            Command::Get(command) => command.run(global).await,
            Command::Delete(command) => command.run(global).await,
            Command::Patch(command) => command.run(global).await,
            Command::Incr(command) => command.run(global).await,
            Command::Scan(command) => command.run(global).await,
            Command::Import(command) => command.run(global).await,
            Command::Export(command) => command.run(global).await,
            Command::Keyspace(command) => command.run(global).await,
            Command::Move(command) => command.run(global).await,
            Command::Ship(command) => command.run(global).await,
            Command::Region(command) => command.run(global).await,
            Command::Status(command) => command.run(global).await,
            Command::Egress(command) => command.run(global).await,
            Command::Doctor(command) => command.run(global),
            Command::Link(command) => command.run(global).await,
            Command::Bench(command) => command.run(global).await,
        }
    })
}

fn show(failure: &Failure, format: Format) {
    let json = match failure {
        Failure::Server(error) => output::error(error),
        Failure::Usage(message) => output::failure("BAD_USAGE", message),
        Failure::Drift(message) => output::failure("DRIFT", message),
        Failure::Local(_) => output::failure("LOCAL_FAULT", &failure.to_string()),
    };
    match (format, failure) {
        (Format::Json, _) => eprintln!("{json}"),
        (Format::Text, Failure::Server(error)) => {
            eprintln!("isle: {} ({} {})", error.message, output::code(error.code), error.reason);
        }
        (Format::Text, _) => eprintln!("isle: {failure}"),
    }
}

/// A server tells what it does, a command only what went wrong.
fn log_to_stderr(format: LogFormat, server: bool) {
    let usual = if server { "info" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("ISLE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(usual));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

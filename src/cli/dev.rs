use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde_json::json;

use super::signals;
use super::{Failure, Global};
use crate::dev::{self, DevError, Endpoints, Plan};
use crate::{output, units};

const USUAL_PORT: u16 = 7400;

#[derive(Args)]
pub struct Dev {
    /// Their names, one region each
    #[arg(long, value_delimiter = ',', default_value = "us-east-1,eu-west-1,ap-southeast-1", value_name = "NAMES")]
    regions: Vec<String>,
    /// Keep the data here; without it, it is gone at the end
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Region i serves clients at PORT+10·i, peers one above, metrics and health two above
    #[arg(long, default_value_t = USUAL_PORT)]
    port: u16,
    /// How long bytes take from region to region, each way
    #[arg(long, value_parser = units::duration, default_value = "40ms", value_name = "SPAN")]
    link_delay: Duration,
}

impl Dev {
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let plan = Plan { regions: self.regions, port: self.port, link_delay: self.link_delay };
        let temporary = match &self.data_dir {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("isle-dev-").tempdir().context("a temporary directory")?),
        };
        let data_dir = match (&self.data_dir, &temporary) {
            (Some(kept), _) => kept.clone(),
            (None, Some(temporary)) => temporary.path().to_owned(),
            (None, None) => unreachable!("without --data-dir a temporary directory is made"),
        };
        let stop = signals::stop()?;
        let endpoints = plan.endpoints();
        let ready = || {
            let lines = if global.is_json() {
                vec![machine_table(&endpoints)]
            } else {
                table(&plan, &endpoints, &self.data_dir)
            };
            // `ready` is the last line of the start, for scripts to wait for.
            for line in lines.iter().map(String::as_str).chain(["ready"]) {
                if let Err(error) = output::line(line) {
                    tracing::warn!(%error, "stdout is gone");
                }
            }
        };
        dev::run(&plan, &data_dir, stop, ready).await.map_err(|error| match error {
            DevError::Plan(fact) => Failure::Usage(fact),
            other => Failure::Local(other.into()),
        })
    }
}

fn machine_table(endpoints: &[Endpoints]) -> String {
    let row = |at: &Endpoints| json!({ "region": at.region, "endpoint": format!("http://{}", at.client), "http": format!("http://{}", at.http) });
    json!({ "regions": endpoints.iter().map(row).collect::<Vec<_>>() }).to_string()
}

fn table(plan: &Plan, endpoints: &[Endpoints], kept: &Option<PathBuf>) -> Vec<String> {
    let wide = endpoints.iter().map(|at| at.region.len()).max().unwrap_or_default().max("region".len());
    let mut lines = vec![format!("{:wide$}  {:<24}  metrics and health", "region", "endpoint")];
    for at in endpoints {
        let endpoint = format!("http://{}", at.client);
        lines.push(format!("{:wide$}  {endpoint:<24}  http://{}", at.region, at.http));
    }
    let data = match kept {
        Some(path) => format!("data: {}", path.display()),
        None => "data: temporary, gone at the end (--data-dir keeps it)".to_owned(),
    };
    lines.extend([String::new(), data, String::new(), "try, in another terminal:".to_owned()]);
    lines.extend(suggestions(plan, endpoints));
    lines.push(String::new());
    lines
}

fn suggestions(plan: &Plan, endpoints: &[Endpoints]) -> Vec<String> {
    // Elsewhere than at the usual port every command has to be told where.
    let first = match plan.port {
        USUAL_PORT => String::new(),
        port => format!(" --endpoint http://127.0.0.1:{port}"),
    };
    let mut lines = vec![format!("  isle put default greeting hello{first}")];
    if let [a, b, ..] = endpoints {
        lines.push(format!("  isle get default greeting --endpoint http://{}", b.client));
        lines.push(format!("  isle link cut {} {}{first}", a.region, b.region));
        lines.push(format!("  isle link heal{first}"));
    }
    lines.push(format!("  isle status{first}"));
    lines
}

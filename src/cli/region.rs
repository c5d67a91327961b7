//! Regions join a running cluster and leave it.

use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use isle_client::v1::{RegionEndpoint, RegionState};
use isle_client::{Client, Options, Retry};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{Failure, Global};
use crate::output;
use crate::units;

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long the joining region itself may take to say how far it is.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Args)]
pub struct Region {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Let a region in: it takes the cluster's state, and then serves. Its node has `join = true` and the others as its peers
    Add(Add),
    /// Take a region out for good, once the others have what it took
    Remove(Remove),
}

#[derive(Args)]
struct Add {
    region: String,
    /// Where the other regions dial it
    #[arg(long, value_name = "URL")]
    peer_endpoint: String,
    /// Where clients reach it
    #[arg(long, value_name = "URL", default_value = "")]
    client_endpoint: String,
    /// Whose law it is under, such as eu
    #[arg(long, value_name = "NAME", default_value = "")]
    jurisdiction: String,
    /// Return when it serves, and show until then how far it is; no longer than this
    #[arg(long, value_name = "SPAN", value_parser = units::duration)]
    wait: Option<Duration>,
}

#[derive(Args)]
struct Remove {
    region: String,
    /// It does not come back: what it had taken and no other region has is lost
    #[arg(long)]
    lost: bool,
    /// Return when it is gone; no longer than this
    #[arg(long, value_name = "SPAN", value_parser = units::duration, conflicts_with = "lost")]
    wait: Option<Duration>,
}

impl Region {
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        match self.what {
            What::Add(add) => add.run(global).await,
            What::Remove(remove) => remove.run(global).await,
        }
    }
}

impl Add {
    async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.client().await?;
        client.add_region(&self.region, &self.jurisdiction, &self.peer_endpoint, &self.client_endpoint).await?;
        let options =
            Options { timeout: PATIENCE, connect_timeout: PATIENCE, retry: Retry::never(), ..global.options()? };
        let told = match self.wait {
            None => "is let in: it serves once it has the cluster's state (isle status shows how far it is)",
            Some(wait) => {
                let is_done = |at: Option<&RegionEndpoint>| at.is_some_and(|at| at.state() == RegionState::Serving);
                until(&client, &self.region, wait, &options, is_done).await?;
                "serves"
            }
        };
        told_of(global, &self.region, if self.wait.is_some() { "SERVING" } else { "JOINING" }, told)
    }
}

impl Remove {
    async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.client().await?;
        client.remove_region(&self.region, self.lost).await?;
        let options =
            Options { timeout: PATIENCE, connect_timeout: PATIENCE, retry: Retry::never(), ..global.options()? };
        match (self.lost, self.wait) {
            (true, _) => told_of(global, &self.region, "REMOVED", "is given up: nothing waits for it any more"),
            (_, None) => {
                let told = "takes no more writes, and goes once the others have what it took (isle status)";
                told_of(global, &self.region, "LEAVING", told)
            }
            (_, Some(wait)) => {
                until(&client, &self.region, wait, &options, |at| at.is_none()).await?;
                told_of(global, &self.region, "REMOVED", "is gone; the others have what it took")
            }
        }
    }
}

/// Waits until the asked region sees it so of another one, and shows meanwhile what that says of itself.
async fn until(
    client: &Client,
    region: &str,
    wait: Duration,
    options: &Options,
    is_done: impl Fn(Option<&RegionEndpoint>) -> bool,
) -> Result<(), Failure> {
    let bar = ProgressBar::new_spinner().with_message(region.to_owned());
    let deadline = Instant::now() + wait;
    let mut last = String::new();
    loop {
        let seen = client.status().await?.regions.into_iter().find(|at| at.region == region);
        if is_done(seen.as_ref()) {
            bar.finish_and_clear();
            return Ok(());
        }
        if let Some(at) = seen.filter(|at| !at.endpoint.is_empty()) {
            let asked = async { Client::connect_with(&at.endpoint, options.clone()).await?.status().await };
            last = match tokio::time::timeout(2 * PATIENCE, asked).await {
                Ok(Ok(reply)) => reply.region.map(|region| region.cause).unwrap_or_default(),
                Ok(Err(error)) => format!("does not answer: {}", error.message),
                Err(_) => "does not answer".to_owned(),
            };
            bar.set_message(format!("{region}: {last}"));
        }
        bar.tick();
        if Instant::now() >= deadline {
            bar.finish_and_clear();
            return Err(Failure::Drift(format!(
                "{region} is not that far yet: {last}. It goes on; isle status shows it"
            )));
        }
        sleep(LOOK_EVERY).await;
    }
}

fn told_of(global: &Global, region: &str, state: &str, told: &str) -> Result<(), Failure> {
    let json = json!({ "region": region, "state": state }).to_string();
    let text = format!("{region} {told}");
    Ok(output::line(if global.is_json() { &json } else { &text })?)
}

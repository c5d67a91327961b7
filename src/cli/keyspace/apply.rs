//! Makes keyspaces what a file declares: read, plan, let the cluster check all of it, show, and carry it out in the file's order. Each
//! change is bound to the etag of what the plan was made from, so that somebody else's change in between is noticed, not undone.

use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use isle_client::{ChangeOptions, Client, Error};
use serde_json::json;

use super::file::{self, Wanted};
use super::plan::{Action, Plan, Step};
use super::{Failure, Global, print};
use crate::config::Fault;

#[derive(Args)]
pub struct Apply {
    /// TOML with a [[keyspace]] table each; `-` reads it from stdin
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Change nothing; exit code 1 if something would have to change
    #[arg(long)]
    check: bool,
    /// Show the plan and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Apply {
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let name = self.file.display().to_string();
        let (wanted, mut faults) = file::read(&name, &self.text()?);
        let client = match global.client().await {
            Ok(client) => client,
            // What is wrong with the file is wrong, whoever is away.
            Err(_) if !faults.is_empty() => return Err(refused(&name, &faults)),
            Err(away) => return Err(away),
        };
        let existing = client.list_keyspaces().await?;
        let plan = Plan::of(&wanted, &existing);
        for step in &plan.steps {
            faults.extend(faults_of(&client, step).await?);
        }
        if !faults.is_empty() {
            return Err(refused(&name, &faults));
        }
        if global.is_json() {
            plan.json_lines().iter().try_for_each(|line| print(&line.to_string()))?;
        } else {
            plan.lines().iter().try_for_each(|line| print(line))?;
        }
        let applies = !self.check && !self.dry_run;
        if applies {
            carry_out(&client, &plan).await?;
        }
        summarise(global, &plan, applies)?;
        let drift = plan.to_create() + plan.to_change();
        match self.check && drift > 0 {
            true => Err(Failure::Drift(format!("{drift} of {} keyspaces are not what {name} says", wanted.len()))),
            false => Ok(()),
        }
    }

    fn text(&self) -> Result<String, Failure> {
        let read = match self.file.as_os_str() == "-" {
            true => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).map(|_| text)
            }
            false => std::fs::read_to_string(&self.file),
        };
        read.map_err(|error| Failure::Usage(format!("--file {}: {error}", self.file.display())))
    }
}

/// What the cluster finds wrong with a step, each at its line.
async fn faults_of(client: &Client, step: &Step<'_>) -> Result<Vec<Fault>, Failure> {
    match carry_out_one(client, step, true).await {
        Ok(()) => Ok(Vec::new()),
        Err(error) if error.violations.is_empty() => Err(error.into()),
        Err(error) => Ok(placed(step.wanted, &error)),
    }
}

fn placed(wanted: &Wanted, error: &Error) -> Vec<Fault> {
    let fault = |violation: &isle_client::Violation| {
        let setting = violation.field.trim_start_matches("keyspace.policy.");
        Fault { place: wanted.place_of(setting).to_owned(), fact: format!("{setting}: {}", violation.rule) }
    };
    error.violations.iter().map(fault).collect()
}

async fn carry_out(client: &Client, plan: &Plan<'_>) -> Result<(), Failure> {
    let total = plan.to_create() + plan.to_change();
    let steps = plan.steps.iter().filter(|step| step.action != Action::Leave);
    for (done, step) in steps.enumerate() {
        if let Err(mut error) = carry_out_one(client, step, false).await {
            error.message =
                format!("{}: {} (made {done} of {total} changes before it)", step.wanted.name, error.message);
            return Err(error.into());
        }
    }
    Ok(())
}

async fn carry_out_one(client: &Client, step: &Step<'_>, dry_run: bool) -> Result<(), Error> {
    let Wanted { name, policy, .. } = step.wanted;
    match &step.action {
        Action::Create => client.create_keyspace(name, policy, dry_run).await.map(drop),
        Action::Change { etag, .. } => {
            let options = ChangeOptions { etag: etag.clone(), dry_run };
            client.update_keyspace(name, policy, &[], options).await.map(drop)
        }
        Action::Leave => Ok(()),
    }
}

fn summarise(global: &Global, plan: &Plan<'_>, applied: bool) -> Result<(), Failure> {
    let (create, change, leave) = (plan.to_create(), plan.to_change(), plan.to_leave());
    if global.is_json() {
        let unlisted = plan.unlisted.len();
        let line =
            json!({ "create": create, "change": change, "leave": leave, "unlisted": unlisted, "applied": applied });
        return print(&line.to_string());
    }
    match applied {
        true => print(&format!("created {create}, changed {change}, left {leave}")),
        false => print(&format!("would create {create}, change {change}, leave {leave}")),
    }
}

fn refused(name: &str, faults: &[Fault]) -> Failure {
    let lines: String = faults.iter().map(|fault| format!("\n  {fault}")).collect();
    Failure::Usage(format!("{name} has {} fault(s):{lines}", faults.len()))
}

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use isle_node::{Clock, SystemClock};
use isle_store::SET_ASIDE;
use isle_store::doctor::{self, Examination, Finding, Repair, Severity};
use serde_json::json;

use super::{Failure, Global};
use crate::boot;

/// Checks a stopped node's data directory; exit code 0 means that it is sound, 1 that it is damaged.
#[derive(Args)]
pub struct Doctor {
    /// The directory; no node may run in it
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Set damaged parts aside, in DIR/damaged-TIME; the node completes itself from its peers at its next start
    #[arg(long)]
    repair: bool,
    /// Where the view is copied to while it is read; it needs as much space as that
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

impl Doctor {
    pub fn run(self, global: &Global) -> Result<(), Failure> {
        let scratch = match &self.scratch {
            Some(path) => tempfile::tempdir_in(path),
            None => tempfile::tempdir(),
        };
        let scratch = scratch.context("making a place for copies")?;
        let doctor = doctor::Doctor::call(&self.data_dir, boot::identity(&self.data_dir), scratch.path());
        let doctor = doctor.map_err(anyhow::Error::from)?;
        let examination = doctor.examine(&mut |at| tracing::info!(at, "examining")).map_err(anyhow::Error::from)?;
        examination.findings.iter().for_each(|finding| show(finding, global.is_json()));
        if !self.repair {
            return verdict(&examination);
        }
        if examination.is_sound() {
            return Ok(());
        }
        let aside = format!("{SET_ASIDE}{}", SystemClock::new().wall_ms() / 1000);
        let repaired = doctor.repair(examination, &aside, boot::incarnation()).map_err(anyhow::Error::from)?;
        show_repair(&repaired, global.is_json());
        Ok(())
    }
}

fn verdict(examination: &Examination) -> Result<(), Failure> {
    let damaged = examination.findings.iter().filter(|finding| finding.severity == Severity::Damage).count();
    match examination.is_sound() {
        true => Ok(()),
        false => Err(anyhow::anyhow!("the data directory is damaged in {damaged} places").into()),
    }
}

fn show(finding: &Finding, as_json: bool) {
    let Finding { severity, part, place, what, advice } = finding;
    if as_json {
        let (severity, part) = (severity.to_string(), part.to_string());
        println!("{}", json!({"severity": severity, "part": part, "place": place, "finding": what, "advice": advice}));
        return;
    }
    let what_to_do = if advice.is_empty() { String::new() } else { format!("; {advice}") };
    println!("{severity:<7} {part:<11} {what}{what_to_do}");
}

fn show_repair(repair: &Repair, as_json: bool) {
    let aside = repair.aside.as_ref().map(|path| path.display().to_string());
    if as_json {
        println!("{}", json!({"repaired": true, "actions": repair.actions, "aside": aside}));
        return;
    }
    repair.actions.iter().for_each(|action| println!("repair  {action}"));
    if let Some(aside) = aside {
        println!("repair  what was damaged is in {aside}");
    }
}

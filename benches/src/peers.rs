//! The side-by-side run: every row, its targets in turns, and a table of what was wanted and what came of it.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::{Args, Parser};
use isle_load::bench::{self, Workload};
use isle_load::machine::Machine;
use isle_load::report::columns;
use isle_load::workload::Outcome;
use isle_load::{chart, report};
use serde_json::json;

use crate::goals::Judged;
use crate::rows::{self, Row, Scale};
use crate::stores::Stores;

#[derive(Args, Debug)]
pub struct Peers {
    /// Rounds a row; in each the targets take turns, and medians are compared
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: u32,
    /// Small amounts: shows that everything runs, and no more
    #[arg(long)]
    quick: bool,
    /// Only these rows
    #[arg(long, value_delimiter = ',', value_name = "ROWS")]
    only: Vec<String>,
    /// Writes of a burst, instead of 1,000,000
    #[arg(long, value_name = "N")]
    burst: Option<u64>,
    /// Keys of the sustained load and of the restart, instead of 10,000,000
    #[arg(long, value_name = "N")]
    keys: Option<u64>,
    /// Where the servers' temporary directories are made
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Writes charts (SVG) into this directory
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
}

/// A row's command line, parsed as `isle-bench` itself would.
#[derive(Parser)]
#[command(no_binary_name = true)]
struct Line {
    #[command(subcommand)]
    workload: Workload,
}

pub fn parse(command: &str) -> anyhow::Result<Workload> {
    Ok(Line::try_parse_from(command.split_whitespace())?.workload)
}

impl Peers {
    /// Whether every goal was reached.
    pub async fn run(&self, stores: &Stores, json: bool) -> anyhow::Result<bool> {
        let rows = self.rows()?;
        let place = self.directory.clone().unwrap_or_else(std::env::temp_dir);
        let machine = Machine::of(&place);
        ensure!(
            !machine.syncs_for_free(),
            "{} is a {}: syncs cost nothing there",
            place.display(),
            machine.file_system
        );
        let version = env!("CARGO_PKG_VERSION");
        if json {
            println!(
                "{}",
                json!({ "machine": machine, "version": version, "rounds": self.rounds, "quick": self.quick })
            );
        } else {
            println!("isle-bench {version} on {}", machine.line());
            println!("{} rounds a row, targets in turns, medians{}", self.rounds, self.remark());
        }
        let mut judged = Vec::new();
        for row in &rows {
            let outcomes = self.row(row, stores, json).await.with_context(|| format!("row {}", row.name))?;
            judged.extend(row.goals.iter().map(|goal| goal.judge(row.name, &outcomes)));
            if let Some(directory) = &self.plot {
                chart::plot(directory, row.name, &outcomes)?;
            }
        }
        show(&judged, json)?;
        Ok(judged.iter().all(|judged| judged.reached))
    }

    fn remark(&self) -> &'static str {
        if self.quick { "; --quick: amounts too small to quote" } else { "" }
    }

    fn rows(&self) -> anyhow::Result<Vec<Row>> {
        let mut scale = if self.quick { Scale::quick() } else { Scale::full() };
        scale.burst = self.burst.unwrap_or(scale.burst);
        scale.keys = self.keys.unwrap_or(scale.keys);
        ensure!(self.rounds > 0, "--rounds is at least 1");
        let rows = rows::all(scale);
        let names: Vec<&str> = rows.iter().map(|row| row.name).collect();
        if let Some(unknown) = self.only.iter().find(|name| !names.contains(&name.as_str())) {
            anyhow::bail!("there is no row {unknown}; there are {}", names.join(", "));
        }
        let wanted = |row: &Row| self.only.is_empty() || self.only.iter().any(|name| name == row.name);
        Ok(rows.into_iter().filter(wanted).collect())
    }

    async fn row(&self, row: &Row, stores: &Stores, json: bool) -> anyhow::Result<Vec<Outcome>> {
        if !json {
            println!("\n{}: {}", row.name, row.title);
            for run in &row.runs {
                println!("  isle-bench --target {} {}", run.store.name(), run.command);
            }
        }
        let mut outcomes = Vec::new();
        for round in 1..=self.rounds {
            for run in &row.runs {
                if !stores.has(run.store) {
                    continue;
                }
                let mut workload = parse(&run.command)?;
                workload.load_mut().directory = self.directory.clone();
                let starter = stores.starter(run.store, workload.load())?;
                let outcome = bench::once(&workload, starter.as_ref(), round).await;
                let mut outcome = outcome.with_context(|| format!("{}: {}", run.store.name(), run.command))?;
                outcome.label = run.label.to_owned();
                if json {
                    let mut line = serde_json::to_value(&outcome)?;
                    line["row"] = row.name.into();
                    println!("{line}");
                }
                outcomes.push(outcome);
            }
        }
        if !json {
            report::table(&outcomes).iter().for_each(|line| println!("  {line}"));
            let missing = row.runs.iter().filter(|run| !stores.has(run.store));
            missing.for_each(|run| println!("  {} is not installed, and left out", run.store.name()));
        }
        Ok(outcomes)
    }
}

fn show(judged: &[Judged], json: bool) -> anyhow::Result<()> {
    if json {
        for judged in judged {
            println!("{}", serde_json::to_string(judged)?);
        }
        return Ok(());
    }
    let head = ["row", "goal", "isle", "beside", "measured", "wanted", ""].map(str::to_owned).to_vec();
    let rows = judged.iter().map(|judged| {
        let verdict = match (judged.measured, judged.reached) {
            (None, _) => "not measured",
            (Some(_), true) => "reached",
            (Some(_), false) => "MISSED",
        };
        vec![
            judged.row.to_owned(),
            judged.goal.to_owned(),
            number(judged.ours),
            number(judged.theirs),
            number(judged.measured),
            judged.wanted.clone(),
            verdict.to_owned(),
        ]
    });
    println!();
    columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>()).iter().for_each(|line| println!("{line}"));
    Ok(())
}

fn number(figure: Option<f64>) -> String {
    match figure {
        None => "–".to_owned(),
        Some(figure) if figure >= 1000.0 => report::grouped(figure),
        Some(figure) => format!("{figure:.2}"),
    }
}

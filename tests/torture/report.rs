//! What came of the scenarios: lines while they run, a table at the end.

use std::fmt;
use std::time::Duration;

/// How often a scenario did its worst, and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub tried: u64,
    pub survived: u64,
    pub lost: u64,
}

/// One scenario.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    pub outcome: Outcome,
    pub took: Duration,
    /// Figures worth knowing, or what was lost.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ran(Tally),
    /// It cannot run here, and why.
    Skipped(String),
}

impl Row {
    /// Nothing was lost. Less than one try proves nothing.
    pub fn is_good(&self) -> bool {
        match &self.outcome {
            Outcome::Ran(tally) => tally.lost == 0 && tally.tried > 0 && tally.survived == tally.tried,
            Outcome::Skipped(_) => true,
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tried {}, survived {}, lost {}", self.tried, self.survived, self.lost)
    }
}

impl Tally {
    /// Reads `scenario NAME: tried N, survived N, lost N`, the line by which other test programs report.
    pub fn read(line: &str) -> Option<(String, Tally)> {
        // The harness of other tests may have written the beginning of the line.
        let (_, line) = line.split_once("scenario ")?;
        let (name, counts) = line.split_once(": ")?;
        let mut numbers = counts.split(", ").map(str::trim);
        let mut number = |word: &str| -> Option<u64> { numbers.next()?.strip_prefix(word)?.trim().parse().ok() };
        let tally = Tally { tried: number("tried")?, survived: number("survived")?, lost: number("lost")? };
        Some((name.to_owned(), tally))
    }
}

/// One row a scenario.
pub fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.len()).chain(["scenario".len()]).max().unwrap_or_default();
    let mut out = format!("{:width$}  {:>7}  {:>8}  {:>5}  {:>6}\n", "scenario", "tried", "survived", "lost", "took");
    for row in rows {
        let took = format!("{:.0} s", row.took.as_secs_f64());
        let line = match &row.outcome {
            Outcome::Ran(Tally { tried, survived, lost }) => {
                format!("{:width$}  {tried:>7}  {survived:>8}  {lost:>5}  {took:>6}", row.name)
            }
            Outcome::Skipped(why) => format!("{:width$}  skipped: {why}", row.name),
        };
        out += &line;
        out.push('\n');
    }
    out
}

/// The runner has no harness to check itself with: it does so before it judges anything else.
pub fn check_itself() {
    let tally = Tally { tried: 12, survived: 11, lost: 1 };
    let line = format!("test it ... scenario half way: {tally}");
    assert_eq!(Tally::read(&line), Some(("half way".to_owned(), tally.clone())));
    assert_eq!(Tally::read("scenario x: tried many"), None);
    let row = |outcome| Row { name: "x".to_owned(), outcome, took: Duration::ZERO, notes: vec![] };
    assert!(!row(Outcome::Ran(tally)).is_good(), "a loss is no success");
    assert!(!row(Outcome::Ran(Tally::default())).is_good(), "nothing tried is nothing proved");
}

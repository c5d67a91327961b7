//! What DESIGN wants of a row, and whether it was reached.
//!
//! A figure is the median over the rounds of one target; a ratio is one median over the other. What was not measured is not reached.

use isle_load::workload::Outcome;
use serde::Serialize;

/// What is looked at of an outcome.
#[derive(Clone, Copy, Debug)]
pub enum Figure {
    PerSecond,
    /// Of all calls, in milliseconds.
    Latency(f64),
    /// One of `Outcome::figures`.
    Named(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    AtLeast,
    AtMost,
}

/// `ours` over `theirs` (or by itself) has to be at least, or at most, so much.
#[derive(Clone, Debug)]
pub struct Goal {
    pub text: &'static str,
    pub ours: (&'static str, Figure),
    pub theirs: Option<(&'static str, Figure)>,
    pub wanted: Wanted,
    pub limit: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judged {
    pub row: &'static str,
    pub goal: &'static str,
    pub ours: Option<f64>,
    pub theirs: Option<f64>,
    /// `ours` over `theirs`, or `ours` where it is judged by itself.
    pub measured: Option<f64>,
    pub wanted: String,
    pub reached: bool,
}

impl Goal {
    pub fn judge(&self, row: &'static str, outcomes: &[Outcome]) -> Judged {
        let ours = median(self.ours, outcomes);
        let theirs = self.theirs.and_then(|theirs| median(theirs, outcomes));
        let measured = match self.theirs {
            None => ours,
            Some(_) => ours.zip(theirs).map(|(ours, theirs)| ours / theirs).filter(|ratio| ratio.is_finite()),
        };
        let reached = measured.is_some_and(|measured| match self.wanted {
            Wanted::AtLeast => measured >= self.limit,
            Wanted::AtMost => measured <= self.limit,
        });
        let sign = if self.wanted == Wanted::AtLeast { "≥" } else { "≤" };
        let wanted = format!("{sign} {}", self.limit);
        Judged { row, goal: self.text, ours, theirs, measured, wanted, reached }
    }
}

fn of(figure: Figure, outcome: &Outcome) -> Option<f64> {
    match figure {
        Figure::PerSecond => Some(outcome.per_second),
        Figure::Latency(quantile) => Some(outcome.measured.overall().at(quantile)),
        Figure::Named(name) => outcome.figures.get(name).copied(),
    }
}

fn median((label, figure): (&str, Figure), outcomes: &[Outcome]) -> Option<f64> {
    let rounds = outcomes.iter().filter(|outcome| outcome.label == label);
    let mut figures: Vec<f64> = rounds.filter_map(|outcome| of(figure, outcome)).collect();
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(figures[middle]),
        _ => Some((figures[middle - 1] + figures[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use isle_load::recorder::Measured;

    use super::*;

    fn outcome(label: &str, per_second: f64, figure: Option<f64>) -> Outcome {
        Outcome {
            workload: "burst",
            variant: String::new(),
            target: "isle",
            label: label.to_owned(),
            durability: "",
            round: 1,
            regions: 1,
            per_second,
            measured: Measured::default(),
            figures: figure.map(|figure| ("lost", figure)).into_iter().collect::<BTreeMap<_, _>>(),
        }
    }

    fn goal(theirs: Option<(&'static str, Figure)>, figure: Figure, wanted: Wanted, limit: f64) -> Goal {
        Goal { text: "", ours: ("isle", figure), theirs, wanted, limit }
    }

    #[test]
    fn a_ratio_is_of_medians() {
        let rounds =
            [("isle", 10.0), ("floor", 20.0), ("isle", 30.0), ("floor", 40.0), ("isle", 500.0), ("floor", 50.0)];
        let outcomes: Vec<Outcome> = rounds.map(|(label, rate)| outcome(label, rate, None)).to_vec();
        let theirs = Some(("floor", Figure::PerSecond));
        let judged = |limit| goal(theirs, Figure::PerSecond, Wanted::AtLeast, limit).judge("row", &outcomes);
        assert_eq!(judged(0.75).measured, Some(0.75));
        assert!(judged(0.75).reached && !judged(0.76).reached);
    }

    #[test]
    fn none_lost_means_none_and_what_was_not_measured_is_not_reached() {
        let none = goal(None, Figure::Named("lost"), Wanted::AtMost, 0.0);
        assert!(none.judge("row", &[outcome("isle", 1.0, Some(0.0))]).reached);
        assert!(!none.judge("row", &[outcome("isle", 1.0, Some(1.0))]).reached);
        assert!(!none.judge("row", &[outcome("isle", 1.0, None)]).reached);
        assert!(!none.judge("row", &[]).reached);
    }
}

//! What people read: settings first, then a table. Programs get the outcomes as JSON.

use serde_json::Value as Json;

use crate::latency::SHOWN;
use crate::machine::Machine;
use crate::workload::Outcome;

const SETTINGS_A_LINE: usize = 8;

/// Rows in columns as wide as their widest cell; the first two are texts, all others numbers.
pub fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let count = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or_default()).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 | 1 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<String>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// What the figures below were measured with: no figure means anything without it.
pub fn heading(program: &str, version: &str, machine: &Machine, settings: &Json) -> Vec<String> {
    let mut lines = vec![format!("{program} {version} on {}", machine.line())];
    lines.extend(self::settings(settings));
    lines.push(String::new());
    lines
}

/// `name value` for each setting, over as few lines as read well.
fn settings(settings: &Json) -> Vec<String> {
    let mut texts = Vec::new();
    collect_settings(settings, &mut texts);
    texts.chunks(SETTINGS_A_LINE).map(|some| some.join(", ")).collect()
}

fn collect_settings(settings: &Json, texts: &mut Vec<String>) {
    let Json::Object(members) = settings else { return };
    for (name, value) in members {
        match value {
            Json::Null => {}
            Json::Object(_) => {
                if !matches!(name.as_str(), "load" | "pace") {
                    texts.push(name.clone());
                }
                collect_settings(value, texts);
            }
            Json::String(text) => texts.push(format!("{} {text}", name.replace('_', " "))),
            other => texts.push(format!("{} {other}", name.replace('_', " "))),
        }
    }
}

/// One row an outcome; of several rounds the one with the median throughput.
pub fn table(outcomes: &[Outcome]) -> Vec<String> {
    let mut rows = vec![head()];
    rows.extend(medians(outcomes).into_iter().map(row));
    let mut lines = columns(&rows);
    lines.push(String::new());
    for outcome in medians(outcomes) {
        lines.push(format!("{}: {}", outcome.label, outcome.durability));
        lines.extend(remarks(outcome));
    }
    lines
}

fn head() -> Vec<String> {
    let names = ["target", "workload", "per second", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms", "stall ms"];
    let names = names.into_iter().chain(["cpu s/M", "peak RSS", "refused"]);
    names.map(str::to_owned).collect()
}

fn row(outcome: &Outcome) -> Vec<String> {
    let latency = outcome.measured.overall();
    let figure = |name: &str| outcome.figures.get(name);
    let mut cells = vec![outcome.label.clone(), format!("{} {}", outcome.workload, outcome.variant)];
    cells.push(grouped(outcome.per_second));
    cells.extend(SHOWN.map(|(_, quantile)| ms(latency.at(quantile))));
    cells.push(ms(latency.max()));
    cells.push(outcome.measured.longest_stall().as_millis().to_string());
    cells.push(figure("server_cpu_seconds_per_million").map_or("?".to_owned(), |cpu| format!("{cpu:.2}")));
    cells.push(figure("server_peak_rss_bytes").map_or("?".to_owned(), |bytes| mebibytes(*bytes)));
    cells.push(outcome.measured.refused.to_string());
    cells
}

/// What has no column of its own.
fn remarks(outcome: &Outcome) -> Vec<String> {
    const IN_COLUMNS: [&str; 2] = ["server_cpu_seconds_per_million", "server_peak_rss_bytes"];
    let mut lines = Vec::new();
    for (name, value) in outcome.figures.iter().filter(|(name, _)| !IN_COLUMNS.contains(name)) {
        lines.push(format!("{}: {} {value:.3}", outcome.label, name.replace('_', " ")));
    }
    if outcome.measured.latency.len() > 1 {
        for (kind, latency) in &outcome.measured.latency {
            let shown =
                SHOWN.map(|(name, quantile)| format!("{} {}", name.replace('_', "."), ms(latency.at(quantile))));
            lines.push(format!("{}: {kind:?} {} calls, ms {}", outcome.label, latency.count(), shown.join(", ")));
        }
    }
    if outcome.measured.missing > 0 {
        lines.push(format!("{}: {} reads found nothing", outcome.label, outcome.measured.missing));
    }
    if let Some(reason) = &outcome.measured.reason {
        lines.push(format!("{}: first refusal: {reason}", outcome.label));
    }
    lines
}

/// In the order in which they came.
pub fn labels(outcomes: &[Outcome]) -> Vec<&str> {
    outcomes.iter().fold(Vec::new(), |mut labels, outcome| {
        if !labels.contains(&outcome.label.as_str()) {
            labels.push(&outcome.label);
        }
        labels
    })
}

/// Of each label's rounds the one with the median throughput.
pub fn medians(outcomes: &[Outcome]) -> Vec<&Outcome> {
    let median = |label: &&str| {
        let mut rounds: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.label == *label).collect();
        rounds.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
        rounds[(rounds.len() - 1) / 2]
    };
    labels(outcomes).iter().map(median).collect()
}

/// `1,234,567`.
pub fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

pub fn ms(number: f64) -> String {
    if number < 10.0 { format!("{number:.2}") } else { format!("{number:.1}") }
}

fn mebibytes(bytes: f64) -> String {
    format!("{:.0} MiB", bytes / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0.0, 999.4, 1_000.0, 1_234_567.0].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn columns_line_up() {
        let rows =
            [vec!["a", "b", "1"], vec!["aa", "bb", "22"]].map(|row| row.iter().map(|c| (*c).to_owned()).collect());
        assert_eq!(columns(&rows), ["a   b    1", "aa  bb  22"]);
    }
}

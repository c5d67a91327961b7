//! Charts of outcomes, as SVG: how latency is distributed, throughput over time, target beside target.

use std::error::Error;
use std::path::{Path, PathBuf};

use plotters::coord::CoordTranslate;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;

use crate::BenchError;
use crate::latency::Latency;
use crate::recorder::BUCKET;
use crate::report::{grouped, labels, medians};
use crate::workload::Outcome;

type Drawn = Result<(), Box<dyn Error>>;
type Draw = fn(&Path, &str, &[Outcome]) -> Drawn;
type Chart<'a, CT> = ChartContext<'a, SVGBackend<'a>, CT>;

const SIZE: (u32, u32) = (960, 540);
/// Okabe and Ito's colours: told apart by everybody.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];
const GRID: RGBColor = RGBColor(225, 225, 225);
const FONT: &str = "sans-serif";

/// Writes the charts of one workload. Says where they are.
pub fn plot(directory: &Path, title: &str, outcomes: &[Outcome]) -> Result<Vec<PathBuf>, BenchError> {
    if outcomes.is_empty() {
        return Ok(Vec::new());
    }
    std::fs::create_dir_all(directory).map_err(|source| BenchError::of_file(directory, source))?;
    let name = title.replace([' ', '/', '.'], "-");
    let charts: [(&str, Draw); 3] = [("latency", latency), ("throughput", throughput), ("targets", beside)];
    let mut written = Vec::new();
    for (kind, draw) in charts {
        let path = directory.join(format!("{name}-{kind}.svg"));
        draw(&path, title, outcomes)
            .map_err(|error| BenchError::Chart { path: path.clone(), fact: error.to_string() })?;
        written.push(path);
    }
    Ok(written)
}

/// Colours stay with their target, whatever the chart.
fn colour(outcomes: &[Outcome], label: &str) -> RGBColor {
    let at = labels(outcomes).iter().position(|name| *name == label).unwrap_or_default();
    COLOURS[at % COLOURS.len()]
}

/// Of all rounds together, over a percentile axis on which each nine is as wide as the one before.
fn latency(path: &Path, title: &str, outcomes: &[Outcome]) -> Drawn {
    let merged: Vec<(&str, Latency)> =
        labels(outcomes).into_iter().map(|name| (name, merged(outcomes, name))).collect();
    let nines = merged.iter().map(|(_, latency)| nines(1.0 - 1.0 / latency.count().max(10) as f64)).fold(2.0, f64::max);
    let lowest = merged.iter().map(|(_, latency)| latency.at(0.0)).fold(f64::MAX, f64::min).max(0.001);
    let highest = merged.iter().map(|(_, latency)| latency.max()).fold(0.01, f64::max);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("{}: latency, by percentile", title), (FONT, 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(Percentiles(nines), (lowest * 0.8..highest * 1.3).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .label_style((FONT, 14))
        .axis_desc_style((FONT, 15))
        .x_desc("share of calls that took no longer")
        .y_desc("milliseconds")
        .y_label_formatter(&|ms| short(*ms))
        .draw()?;
    for (name, latency) in &merged {
        let points = latency.curve().into_iter().filter(|(quantile, _)| *quantile < 1.0);
        let points: Vec<(f64, f64)> = points.map(|(quantile, ms)| (self::nines(quantile).min(nines), ms)).collect();
        let colour = colour(outcomes, name);
        let series = chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
        series.label(*name).legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], colour.stroke_width(3)));
    }
    legend(&mut chart, SeriesLabelPosition::LowerRight)?;
    Ok(root.present()?)
}

/// Operations a second, in tenths of a second, of each target's median round.
fn throughput(path: &Path, title: &str, outcomes: &[Outcome]) -> Drawn {
    let rounds = medians(outcomes);
    let seconds = BUCKET.as_secs_f64();
    let longest = rounds.iter().map(|outcome| outcome.measured.timeline.len()).max().unwrap_or_default().max(2);
    let highest = rounds.iter().flat_map(|outcome| &outcome.measured.timeline).max().copied().unwrap_or_default();
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("{}: throughput over time", title), (FONT, 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(88)
        .build_cartesian_2d(0.0..longest as f64 * seconds, 0.0..(highest as f64 / seconds * 1.15).max(1.0))?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .label_style((FONT, 14))
        .axis_desc_style((FONT, 15))
        .x_desc("seconds")
        .y_desc("operations a second")
        .x_label_formatter(&|x| short(*x))
        .y_label_formatter(&|y| grouped(*y))
        .draw()?;
    for outcome in &rounds {
        // The last bucket is not a whole one, and would look like a fall.
        let whole = outcome.measured.timeline.len().saturating_sub(1).max(1);
        let points = outcome.measured.timeline.iter().take(whole).enumerate();
        let points: Vec<(f64, f64)> =
            points.map(|(at, count)| ((at as f64 + 0.5) * seconds, *count as f64 / seconds)).collect();
        let colour = colour(outcomes, &outcome.label);
        let series = chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
        series
            .label(outcome.label.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], colour.stroke_width(3)));
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)?;
    Ok(root.present()?)
}

/// The median round as a bar, and the slowest and fastest as a line over it.
fn beside(path: &Path, title: &str, outcomes: &[Outcome]) -> Drawn {
    let rounds = medians(outcomes);
    let highest = outcomes.iter().map(|outcome| outcome.per_second).fold(1.0, f64::max);
    let names: Vec<&str> = rounds.iter().map(|outcome| outcome.label.as_str()).collect();
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("{}: target beside target", title), (FONT, 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(88)
        .build_cartesian_2d(-0.5..names.len() as f64 - 0.5, 0.0..highest * 1.15)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .label_style((FONT, 14))
        .axis_desc_style((FONT, 15))
        .y_desc("operations a second")
        .y_label_formatter(&|y| grouped(*y))
        .draw()?;
    for (at, outcome) in rounds.iter().enumerate() {
        let at = at as f64;
        let of_target = || outcomes.iter().filter(|one| one.label == outcome.label).map(|one| one.per_second);
        let (slowest, fastest) = (of_target().fold(f64::MAX, f64::min), of_target().fold(0.0, f64::max));
        let colour = colour(outcomes, &outcome.label);
        let bar = Rectangle::new([(at - 0.3, 0.0), (at + 0.3, outcome.per_second)], colour.mix(0.85).filled());
        chart.draw_series([bar])?;
        chart.draw_series([PathElement::new([(at, slowest), (at, fastest)], BLACK.stroke_width(2))])?;
        let centred = |size| (FONT, size).into_font().into_text_style(&root).pos(text_anchor());
        let name = EmptyElement::at((at, 0.0)) + Text::new(outcome.label.clone(), (0, 18), centred(16));
        chart.draw_series([name])?;
        let figure = EmptyElement::at((at, fastest)) + Text::new(grouped(outcome.per_second), (0, -12), centred(15));
        chart.draw_series([figure])?;
    }
    Ok(root.present()?)
}

fn text_anchor() -> plotters::style::text_anchor::Pos {
    use plotters::style::text_anchor::{HPos, Pos, VPos};
    Pos::new(HPos::Center, VPos::Center)
}

fn legend<'a, CT: CoordTranslate>(chart: &mut Chart<'a, CT>, position: SeriesLabelPosition) -> Drawn {
    let mut labels = chart.configure_series_labels();
    labels.position(position).background_style(WHITE.mix(0.85)).border_style(GRID).label_font((FONT, 15)).margin(10);
    Ok(labels.draw()?)
}

fn merged(outcomes: &[Outcome], label: &str) -> Latency {
    let mut all = Latency::default();
    let rounds = outcomes.iter().filter(|outcome| outcome.label == label);
    rounds.for_each(|outcome| all.merge(&outcome.measured.overall()));
    all
}

/// 0.9 is one nine, 0.99 two, and 0.5 a third of one.
fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).max(1e-9).log10()
}

fn short(number: f64) -> String {
    let digits = if number >= 10.0 {
        0
    } else if number >= 1.0 {
        1
    } else {
        3
    };
    let text = format!("{number:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// An axis of nines from 0 to so many, marked where people look.
struct Percentiles(f64);

impl Ranged for Percentiles {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        limit.0 + (f64::from(limit.1 - limit.0) * value / self.0) as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        let marks = [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999];
        marks.into_iter().map(nines).filter(|mark| *mark <= self.0 + 1e-9).collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        0.0..self.0
    }
}

impl ValueFormatter<f64> for Percentiles {
    fn format(value: &f64) -> String {
        let percent = 100.0 * (1.0 - 10f64.powf(-value));
        let digits = (value.round() as usize).saturating_sub(2);
        format!("{percent:.digits$} %")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn percentiles_are_named_as_people_do() {
        let names: Vec<String> =
            [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999].into_iter().map(|q| Percentiles::format(&nines(q))).collect();
        assert_eq!(names, ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([0.25, 1.0, 2.5, 100.0, 0.0].map(short), ["0.25", "1", "2.5", "100", "0"]);
    }
}

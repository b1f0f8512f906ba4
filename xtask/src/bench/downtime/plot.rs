//! The comparison as a picture: an SVG for each scheduler.
//!
//! Owns what is drawn where: a column for each operation, above the blackout of the worst vCPU, then what of it is not the hypercall,
//! below the guest's own part; vCPUs to the right, time upwards, both by powers, since both guests are to be read although one is a
//! hundred times the other. Bars go from the least of the rounds to the greatest. Pure: rows in, text out.

#![forbid(unsafe_code)]

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::prelude::*;

use super::super::Side;
use super::super::table::Spread;
use super::Sched;
use super::table::{Row, What};
use crate::drive::cycles::Kind;

/// From above.
const FIGURES: [What; 3] = [What::Blackout, What::SeenOfGuest, What::SaidOfGuest];

/// What stands for no time at all, which has no logarithm.
const NEXT_TO_NOTHING_MS: f64 = 1e-3;

/// Who is drawn how.
const SIDES: [(Side, RGBColor); 2] = [(Side::Stasis, BLUE), (Side::Linux, RED)];

/// Of one panel.
const SIZE: (u32, u32) = (420, 320);

/// A column: its title, and the operation that rows have.
type Column = (String, Option<Kind>);

/// The picture of what was measured under `sched`; `None` where there is nothing to draw.
///
/// # Errors
/// When drawing fails, which is a bug of ours.
pub fn svg(rows: &[Row], sched: Sched) -> Result<Option<String>> {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.sched == sched).collect();
    let operations = [Kind::Checkpoint, Kind::SaveRestore, Kind::Migrate];
    let columns: Vec<Column> = operations
        .into_iter()
        .filter(|kind| rows.iter().any(|row| row.how == Some(*kind)))
        .map(|kind| (kind.name().to_owned(), Some(kind)))
        .collect();
    let mut panels: Vec<Vec<(String, Vec<&Row>)>> = FIGURES
        .iter()
        .map(|what| columns.iter().map(|(title, how)| panel(&rows, *what, title, *how)).collect())
        .collect();
    // The rendezvous stands by itself, on the right of the first line.
    let (title, stops) = panel(&rows, What::Stopped, "", None);
    if let (Some(first), false) = (panels.first_mut(), stops.is_empty()) {
        first.push((title, stops));
    }
    let across = panels.iter().map(Vec::len).max().unwrap_or(0);
    if across == 0 {
        return Ok(None);
    }
    let (wide, high) = (u32::try_from(across)?, u32::try_from(panels.len())?);
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (SIZE.0 * wide, SIZE.1 * high + 40)).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        // What each colour means stands once, where no line comes.
        let measured = SIDES.iter().filter(|(side, _)| rows.iter().any(|row| of_side(row, *side).is_some()));
        for ((side, colour), place) in measured.zip(0..) {
            let style = ("sans-serif", 18).into_font().color(colour);
            root.draw(&Text::new(side.name(), (16 + 80 * place, 12), style)).map_err(failed)?;
        }
        let heading = format!("Suspends under {}", sched.name());
        let root = root.titled(&heading, ("sans-serif", 22)).map_err(failed)?;
        let areas = root.split_evenly((panels.len(), across));
        for (line, panels) in areas.chunks(across).zip(&panels) {
            for (area, (title, rows)) in line.iter().zip(panels) {
                draw(area, title, rows).map_err(failed)?;
            }
        }
        root.present().map_err(failed)?;
    }
    Ok(Some(text))
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing the plot: {error}")
}

fn panel<'r>(rows: &[&'r Row], what: What, operation: &str, how: Option<Kind>) -> (String, Vec<&'r Row>) {
    let of = rows.iter().filter(|row| (row.what, row.how) == (what, how)).copied().collect();
    let title = if operation.is_empty() { what.name().to_owned() } else { format!("{operation}: {}", what.name()) };
    (title, of)
}

/// What is drawn of one side.
fn of_side(row: &Row, side: Side) -> Option<Spread> {
    match side {
        Side::Stasis => row.stasis,
        Side::Linux => row.linux,
    }
}

fn draw<B: DrawingBackend>(
    area: &DrawingArea<B, plotters::coord::Shift>,
    title: &str,
    rows: &[&Row],
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let spreads: Vec<Spread> = rows.iter().flat_map(|row| [row.stasis, row.linux]).flatten().collect();
    // A place that nothing was measured for stays empty: it has no least and no most.
    if spreads.is_empty() {
        return Ok(());
    }
    let least = spreads.iter().map(|s| s.least).fold(f64::INFINITY, f64::min).max(NEXT_TO_NOTHING_MS);
    let most = spreads.iter().map(|s| s.greatest).fold(least, f64::max);
    let vcpus: Vec<f64> = rows.iter().map(|row| f64::from(row.vcpus).log2()).collect();
    let (fewest, many) = vcpus.iter().fold((f64::INFINITY, 0.0_f64), |(low, high), n| (low.min(*n), high.max(*n)));
    let decades = least.log10().floor()..most.log10().ceil().max(least.log10().floor() + 1.0);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(32)
        .y_label_area_size(56)
        .build_cartesian_2d(
            Axis { range: fewest - 0.3..many + 0.3, marks: vcpus },
            Axis { range: decades.clone(), marks: marks(decades) },
        )?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("vCPUs")
        .y_desc("ms")
        .x_label_formatter(&|n| format!("{:.0}", n.exp2()))
        .y_label_formatter(&|ms| significant(10_f64.powf(*ms)).to_string())
        .draw()?;
    for (side, colour) in SIDES {
        let points: Vec<(f64, Spread)> =
            rows.iter().filter_map(|row| Some((f64::from(row.vcpus).log2(), of_side(row, side)?))).collect();
        if points.is_empty() {
            continue;
        }
        let at = |ms: f64| ms.max(NEXT_TO_NOTHING_MS).log10();
        chart.draw_series(LineSeries::new(points.iter().map(|(n, s)| (*n, at(s.median))), colour.stroke_width(2)))?;
        chart.draw_series(
            points.iter().map(|(n, s)| {
                ErrorBar::new_vertical(*n, at(s.least), at(s.median), at(s.greatest), colour.filled(), 8)
            }),
        )?;
    }
    Ok(())
}

/// An axis of logarithms, with all of its marks. plotters' own have as many marks as fit, at round steps of what is not shown.
struct Axis {
    range: std::ops::Range<f64>,
    marks: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    #[expect(clippy::cast_possible_truncation, reason = "a place in the picture")]
    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let part = (value - self.range.start) / (self.range.end - self.range.start);
        limit.0 + (part * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.marks.clone()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.range.clone()
    }
}

/// 1, 2 and 5 of each decade, or each decade alone where there are many; as logarithms, like the range.
fn marks(decades: std::ops::Range<f64>) -> Vec<f64> {
    let steps: &[f64] = if decades.end - decades.start > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let mut marks = Vec::new();
    let mut decade = decades.start;
    while decade <= decades.end {
        marks.extend(steps.iter().map(|step| decade + step.log10()).filter(|mark| *mark <= decades.end));
        decade += 1.0;
    }
    marks
}

/// A mark of the axis without what arithmetic has left behind it.
fn significant(ms: f64) -> f64 {
    if ms >= 1.0 { ms.round() } else { (ms * 1e6).round() / 1e6 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(what: What, how: Option<Kind>, vcpus: u32, stasis: f64, linux: f64) -> Row {
        let spread = |ms: f64| Some(Spread { median: ms, least: ms * 0.9, greatest: ms * 1.1 });
        Row {
            sched: Sched::Credit2,
            what,
            how,
            vcpus,
            stasis: spread(stasis),
            linux: spread(linux),
            ratio: spread(stasis / linux),
            target: None,
        }
    }

    #[test]
    fn every_operation_has_its_panels() {
        let rows: Vec<Row> = [2, 8, 32]
            .into_iter()
            .flat_map(|vcpus| {
                let migrate = Some(Kind::Migrate);
                [
                    row(What::Blackout, Some(Kind::Checkpoint), vcpus, 500.0, 900.0),
                    row(What::Blackout, migrate, vcpus, 300.0, 1500.0),
                    row(What::SeenOfGuest, migrate, vcpus, 30.0, 900.0),
                    row(What::SaidOfGuest, Some(Kind::Checkpoint), vcpus, 2.0, 400.0),
                    row(What::SaidOfGuest, migrate, vcpus, 0.0, 700.0),
                    row(What::Stopped, None, vcpus, 0.05, 159.0),
                ]
            })
            .collect();
        let text = svg(&rows, Sched::Credit2).expect("it can be drawn").expect("there is something to draw");
        for part in [
            "<svg",
            "Suspends under credit2",
            "save -c: blackout, worst vCPU",
            "migrate: blackout less held",
            "migrate: guest&apos;s own part",
            "stop-machine, until stopped",
            "stasis",
            "linux",
            "vCPUs",
        ] {
            assert!(text.contains(part), "{part} is not in the picture");
        }
        assert!(!text.contains("restore") && !text.contains("NaN") && !text.contains("inf"));
    }

    #[test]
    fn nothing_measured_is_nothing_drawn() {
        assert_eq!(svg(&[row(What::Stopped, None, 2, 1.0, 1.0)], Sched::Credit).expect("no error"), None);
        let alone = Row { linux: None, ratio: None, ..row(What::Stopped, None, 2, 1.0, 1.0) };
        let text = svg(&[alone], Sched::Credit2).expect("it can be drawn").expect("one point is something");
        assert!(text.contains("stasis") && !text.contains("\nlinux"), "a side that was not measured has no line");
    }

    #[test]
    fn marks_are_round_numbers() {
        let of =
            |low, high| marks(low..high).into_iter().map(|mark| significant(10_f64.powf(mark))).collect::<Vec<_>>();
        assert_eq!(of(-1.0, 1.0), [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]);
        assert_eq!(of(-2.0, 2.0), [0.01, 0.1, 1.0, 10.0, 100.0]);
    }
}

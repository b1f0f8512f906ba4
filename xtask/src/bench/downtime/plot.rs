//! The comparison as a picture: an SVG for each scheduler.
//!
//! Owns what is drawn where: a column for each operation, above the blackout of the worst vCPU, below the guest's own part; vCPUs
//! to the right, time upwards, both by powers, since both guests are to be read although one is a hundred times the other. Bars go
//! from the least of the rounds to the greatest. Pure: rows in, text out.

#![forbid(unsafe_code)]

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::super::Side;
use super::super::table::Spread;
use super::Sched;
use super::table::{Row, What};
use crate::drive::cycles::Kind;

/// Above and below.
const FIGURES: [What; 2] = [What::Blackout, What::SaidOfGuest];

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
        let heading = format!("Suspends under {}: stasis and Linux", sched.name());
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
    let sides = [(Side::Stasis, BLUE), (Side::Linux, RED)];
    let spreads: Vec<Spread> = rows.iter().flat_map(|row| [row.stasis, row.linux]).flatten().collect();
    // A logarithm has no zero.
    let least = spreads.iter().map(|s| s.least).fold(f64::INFINITY, f64::min).max(1e-3);
    let most = spreads.iter().map(|s| s.greatest).fold(least, f64::max);
    let vcpus = rows.iter().map(|row| f64::from(row.vcpus));
    let (fewest, many) = vcpus.fold((f64::INFINITY, 1.0), |(low, high): (f64, f64), n| (low.min(n), high.max(n)));
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(30)
        .y_label_area_size(60)
        .build_cartesian_2d(around(fewest, many).log_scale().base(2.0), around(least, most).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("vCPUs")
        .y_desc("ms")
        .x_label_formatter(&|n| format!("{n:.0}"))
        .y_label_formatter(&|ms| shown(*ms))
        .draw()?;
    for (side, colour) in sides {
        let points: Vec<(f64, Spread)> =
            rows.iter().filter_map(|row| Some((f64::from(row.vcpus), of_side(row, side)?))).collect();
        if points.is_empty() {
            continue;
        }
        let at = |ms: f64| ms.max(1e-3);
        chart
            .draw_series(LineSeries::new(points.iter().map(|(n, s)| (*n, at(s.median))), colour.stroke_width(2)))?
            .label(side.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        chart.draw_series(
            points.iter().map(|(n, s)| {
                ErrorBar::new_vertical(*n, at(s.least), at(s.median), at(s.greatest), colour.filled(), 6)
            }),
        )?;
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
    Ok(())
}

/// A range with some room on either side.
fn around(low: f64, high: f64) -> std::ops::Range<f64> {
    low / 1.5..high * 1.5
}

/// A time on the axis: no more digits than it takes.
fn shown(ms: f64) -> String {
    if ms >= 1.0 { format!("{ms:.0}") } else { format!("{ms}") }
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
        assert!(text.contains("stasis") && !text.contains(">linux"), "a side that was not measured has no line");
    }
}

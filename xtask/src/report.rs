//! The end of a run in words and tables.
//!
//! Owns how figures are shown: the table per suspend, the table of test layers, durations. Pure.
//! Turned down: CSV; `data/stasis/*` and the console lines are there for machines.

#![forbid(unsafe_code)]

use comfy_table::{CellAlignment, Table, presets};

use crate::counts::Layer;
use crate::drive::cycles::Suspend;

/// One row per suspend, in order, and the worst of each column where there are several.
pub fn suspends(rows: &[Suspend]) -> String {
    let mut table =
        table(&["#", "how", "incarnation", "vCPUs", "prepare", "blackout", "resume", "slowest vCPU", "command"]);
    for (index, row) in rows.iter().enumerate() {
        table.add_row([
            (index + 1).to_string(),
            row.kind.name().to_owned(),
            row.incarnation.to_string(),
            row.vcpus.to_string(),
            duration(row.phases.prepare_ns),
            duration(row.phases.blackout_ns),
            duration(row.phases.resume_ns),
            row.slowest_vcpu.map_or_else(|| "-".to_owned(), |cpu| cpu.to_string()),
            format!("{:.1} s", row.took.as_secs_f64()),
        ]);
    }
    if rows.len() > 1 {
        let worst = |pick: fn(&Suspend) -> u64| duration(rows.iter().map(pick).max().unwrap_or(0));
        table.add_row([
            String::new(),
            "worst".to_owned(),
            String::new(),
            String::new(),
            worst(|row| row.phases.prepare_ns),
            worst(|row| row.phases.blackout_ns),
            worst(|row| row.phases.resume_ns),
            String::new(),
            String::new(),
        ]);
    }
    table.to_string()
}

/// One row per test layer.
pub fn layers(rows: &[Layer]) -> String {
    let mut table = table(&["layer", "passed", "failed", "skipped", "time", "why skipped"]);
    for row in rows {
        table.add_row([
            row.name.clone(),
            row.counts.passed.to_string(),
            row.counts.failed.to_string(),
            row.counts.skipped.to_string(),
            format!("{:.0} s", row.took.as_secs_f64()),
            row.why_skipped(),
        ]);
    }
    table.to_string()
}

/// A weakened ordering that was not found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survivor {
    /// `file:line`.
    pub place: String,
    /// What was done to it.
    pub what: String,
    /// What the tests said.
    pub why: String,
}

/// One row for each survivor.
pub fn survivors(rows: &[Survivor]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header(["where", "weakened", "tests"]);
    for row in rows {
        table.add_row([&row.place, &row.what, &row.why]);
    }
    table.to_string()
}

/// One row for each quantity, in ns: how many, and their spread.
pub fn spread(rows: &[(&str, Vec<u64>)]) -> String {
    let mut table = table(&["what", "n", "least", "p50", "p90", "p99", "most"]);
    for (name, values) in rows {
        let mut values = values.clone();
        values.sort_unstable();
        let at = |percent| duration(percentile(&values, percent));
        table.add_row([(*name).to_owned(), values.len().to_string(), at(0), at(50), at(90), at(99), at(100)]);
    }
    table.to_string()
}

/// Counts in a few words: the median and the extremes.
pub fn counts(values: &[u64]) -> String {
    let mut values = values.to_vec();
    values.sort_unstable();
    let at = |percent| percentile(&values, percent);
    if values.is_empty() { "none".to_owned() } else { format!("{} ({} to {})", at(50), at(0), at(100)) }
}

/// Of sorted values: the smallest that is not below `percent` of them.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let place = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(place).copied().unwrap_or(0)
}

/// Pages written to, by occasion.
pub fn dirty(rows: &[(String, String)]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header(["when", "pages written to"]);
    for (when, pages) in rows {
        table.add_row([when, pages]);
    }
    table.to_string()
}

/// Nanoseconds with three significant digits and a unit that fits.
pub fn duration(ns: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let value = ns as f64;
    for (unit, scale) in [("s", 1e9), ("ms", 1e6), ("us", 1e3)] {
        if value >= scale {
            let scaled = value / scale;
            let digits = if scaled < 9.995 { 2 } else { usize::from(scaled < 99.95) };
            return format!("{scaled:.digits$} {unit}");
        }
    }
    format!("{ns} ns")
}

fn table(headers: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header(headers);
    for (column, header) in table.column_iter_mut().zip(headers) {
        if !["how", "layer", "what", "why skipped"].contains(header) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::contract::Phases;
    use crate::drive::cycles::Kind;

    #[test]
    fn durations_keep_three_digits() {
        for (ns, want) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1000, "1.00 us"),
            (12_345, "12.3 us"),
            (99_949, "99.9 us"),
            (123_456, "123 us"),
            (1_500_000, "1.50 ms"),
            (2_000_000_000, "2.00 s"),
        ] {
            assert_eq!(duration(ns), want, "{ns}");
        }
    }

    #[test]
    fn spreads_are_of_what_was_seen() {
        let table = spread(&[("blackout", (1..=100).map(|n| n * 1000).collect())]);
        for figure in ["1.00 us", "50.0 us", "90.0 us", "99.0 us", "100 us"] {
            assert!(table.contains(figure), "{figure} in\n{table}");
        }
        assert_eq!(counts(&[23, 24, 4192]), "24 (23 to 4192)");
        assert_eq!(counts(&[7]), "7 (7 to 7)");
        assert_eq!(counts(&[]), "none");
    }

    fn row(incarnation: u64, blackout_ns: u64) -> Suspend {
        Suspend {
            via: "xenstore".into(),
            kind: Kind::Migrate,
            incarnation,
            vcpus: 8,
            phases: Phases { prepare_ns: 1_000, blackout_ns, resume_ns: 3 },
            slowest_vcpu: Some(5),
            took: Duration::from_millis(4200),
        }
    }

    #[test]
    fn the_table_has_a_row_per_suspend_and_the_worst() {
        let text = suspends(&[row(2, 5_000_000), row(3, 7_000_000)]);
        for part in ["migrate", "5.00 ms", "7.00 ms", "4.2 s", "slowest vCPU", "worst"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert_eq!(text.matches("7.00 ms").count(), 2, "its row and the worst\n{text}");
        assert!(!suspends(&[row(2, 5)]).contains("worst"), "one row needs no summary");
    }

    #[test]
    fn the_layers_table_says_why_something_was_skipped() {
        let mut layer = Layer::new("miri");
        layer.skip("no nightly toolchain");
        let text = layers(&[layer]);
        assert!(text.contains("miri") && text.contains("no nightly toolchain"), "{text}");
    }
}

//! The comparison: what one side needed, what the other did, their ratio, and what it was to be.
//!
//! Owns the targets and the arithmetic of spreads. Pure. A ratio is taken within a round, where both sides met the same
//! machine; shown are the median of the rounds and, in brackets, the least and the greatest. Turned down: a ratio of means,
//! which one disturbed round decides.

#![forbid(unsafe_code)]

use comfy_table::{CellAlignment, Table, presets};

use super::said::Figures;
use super::{Run, Side};

/// At most this part of what Linux takes: bench, variant, ratio.
const AGAINST_LINUX: [(&str, &str, f64); 6] = [
    ("self-event", "", 0.6),
    ("drain", "k=64", 0.12),
    ("drain", "k=256", 0.12),
    ("ipi-call", "other=spin", 0.55),
    ("ipi-call", "other=idle", 0.6),
    ("timer-busy", "", 0.4),
];

/// At most this much of what Xen alone takes, which `bare-ipi` measures.
const CALL_AGAINST_BARE: f64 = 1.15;

/// Several rounds' worth of one figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub greatest: f64,
}

impl Spread {
    /// `None` of nothing. The median of an even number is the mean of the middle two.
    pub fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let (least, greatest) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Spread { median, least, greatest })
    }

    /// In words, with so many decimals; the ends where they differ.
    pub(super) fn show(self, digits: usize) -> String {
        let Spread { median, least, greatest } = self;
        if least == greatest {
            return format!("{median:.digits$}");
        }
        format!("{median:.digits$} [{least:.digits$}..{greatest:.digits$}]")
    }
}

/// One line of the comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What was measured: name, variant, ABI.
    pub key: [String; 3],
    /// Ours.
    pub stasis: Option<Spread>,
    /// The other's: Linux's, or Xen's alone.
    pub other: Option<Spread>,
    /// Ours by the other's, round by round.
    pub ratio: Option<Spread>,
    /// The most that the ratio was to be.
    pub target: Option<f64>,
}

impl Row {
    /// Whether the target was met; `None` where there is none, or nothing to compare.
    pub fn met(&self) -> Option<bool> {
        Some(self.ratio?.median <= self.target?)
    }
}

/// All rows, in the order in which benches were first heard; then the calls against what Xen alone takes.
pub fn rows(runs: &[Run]) -> Vec<Row> {
    let mut keys: Vec<[&str; 3]> = Vec::new();
    for figures in runs.iter().flat_map(|run| &run.figures) {
        let key = key(figures);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let against_linux = keys.iter().map(|&[name, variant, abi]| {
        let target = AGAINST_LINUX.iter().find(|(n, v, _)| (*n, *v) == (name, variant)).map(|(_, _, most)| *most);
        let of = |side| medians(runs, side, [name, variant, abi]);
        row([name, variant, abi], &of(Side::Stasis), &of(Side::Linux), target)
    });
    let against_bare = keys.iter().filter(|[name, ..]| *name == "ipi-call").filter_map(|&[name, variant, abi]| {
        let bare = medians(runs, Side::Stasis, ["bare-ipi", variant, abi]);
        let call = medians(runs, Side::Stasis, [name, variant, abi]);
        let of_both = row(["ipi-call by bare-ipi", variant, abi], &call, &bare, Some(CALL_AGAINST_BARE));
        of_both.ratio.is_some().then_some(of_both)
    });
    against_linux.chain(against_bare).collect()
}

fn key(figures: &Figures) -> [&str; 3] {
    [&figures.name, &figures.variant, &figures.abi]
}

/// Each round's median.
fn medians(runs: &[Run], side: Side, wanted: [&str; 3]) -> Vec<(u32, u64)> {
    runs.iter()
        .filter(|run| run.side == side)
        .filter_map(|run| run.figures.iter().find(|f| key(f) == wanted).map(|figures| (run.round, figures.p50)))
        .collect()
}

fn row(key: [&str; 3], ours: &[(u32, u64)], others: &[(u32, u64)], target: Option<f64>) -> Row {
    let spread = |of: &[(u32, u64)]| Spread::of(of.iter().map(|(_, p50)| float(*p50)).collect());
    let ratios = ours.iter().filter_map(|(round, p50)| {
        let (_, other) = others.iter().find(|(of, other)| of == round && *other > 0)?;
        Some(float(*p50) / float(*other))
    });
    Row {
        key: key.map(str::to_owned),
        stasis: spread(ours),
        other: spread(others),
        ratio: Spread::of(ratios.collect()),
        target,
    }
}

#[expect(clippy::cast_precision_loss, reason = "four digits are shown")]
fn float(ticks: u64) -> f64 {
    ticks as f64
}

/// The rows as a table. A target is judged only where figures repeat: in the deterministic mode.
pub fn render(rows: &[Row], deterministic: bool) -> String {
    let mut table = Table::new();
    let headers = ["bench", "variant", "abi", "stasis p50", "other p50", "ratio", "at most", "target"];
    table.load_style(presets::UTF8_BORDERS_ONLY).set_header(headers);
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for row in rows {
        let shown =
            |spread: Option<Spread>, digits| spread.map_or_else(|| "-".to_owned(), |spread| spread.show(digits));
        let judged = match row.met() {
            Some(true) if deterministic => "met",
            Some(false) if deterministic => "missed",
            _ => "",
        };
        let [name, variant, abi] = row.key.clone();
        table.add_row([
            name,
            variant,
            abi,
            shown(row.stasis, 0),
            shown(row.other, 0),
            shown(row.ratio, 3),
            row.target.map_or_else(String::new, |most| format!("{most:.2}")),
            judged.to_owned(),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(name: &str, variant: &str, p50: u64) -> Figures {
        Figures { name: name.into(), variant: variant.into(), abi: "2l".into(), n: 1, p50, ..Figures::default() }
    }

    fn run(round: u32, side: Side, figures: &[Figures]) -> Run {
        Run { round, side, figures: figures.to_vec() }
    }

    #[test]
    fn the_median_is_the_middle_and_the_ends_are_kept() {
        let spread = |values: &[f64]| Spread::of(values.to_vec()).map(|s| (s.median, s.least, s.greatest));
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some((2.0, 1.0, 3.0)));
        assert_eq!(spread(&[4.0, 1.0]), Some((2.5, 1.0, 4.0)));
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let event = |p50| figures("self-event", "", p50);
        let runs = [
            run(1, Side::Stasis, &[event(100)]),
            run(1, Side::Linux, &[event(200)]),
            run(2, Side::Linux, &[event(1000)]),
            run(2, Side::Stasis, &[event(800)]),
            run(3, Side::Stasis, &[event(5)]),
        ];
        let rows = rows(&runs);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].ratio, Some(Spread { median: 0.65, least: 0.5, greatest: 0.8 }));
        assert_eq!((rows[0].target, rows[0].met()), (Some(0.6), Some(false)));
        assert_eq!(rows[0].stasis, Some(Spread { median: 100.0, least: 5.0, greatest: 800.0 }));
    }

    #[test]
    fn targets_are_for_their_variants_only() {
        let stasis = [figures("drain", "k=64", 120), figures("drain", "k=8", 120)];
        let linux = [figures("drain", "k=64", 1000), figures("drain", "k=8", 1000)];
        let rows = rows(&[run(1, Side::Stasis, &stasis), run(1, Side::Linux, &linux)]);
        assert_eq!(rows[0].met(), Some(true), "0.12 is as good as asked for");
        assert_eq!((rows[1].target, rows[1].met()), (None, None));
    }

    #[test]
    fn a_call_is_compared_with_what_xen_alone_takes() {
        let stasis = [figures("ipi-call", "other=idle", 1200), figures("bare-ipi", "other=idle", 1000)];
        let all = rows(&[run(1, Side::Stasis, &stasis)]);
        assert_eq!(all.len(), 3);
        assert_eq!((all[2].key[0].as_str(), all[2].met()), ("ipi-call by bare-ipi", Some(false)));
        assert_eq!(all[0].met(), None, "there is no Linux to compare with");
        let alone = rows(&[run(1, Side::Stasis, &stasis[..1])]);
        assert_eq!(alone.len(), 1, "nothing without bare-ipi");
    }

    #[test]
    fn targets_are_judged_only_where_figures_repeat() {
        let event = |p50| figures("self-event", "", p50);
        let rows = rows(&[run(1, Side::Stasis, &[event(100)]), run(1, Side::Linux, &[event(200)])]);
        assert!(render(&rows, true).contains("met"));
        let shown = render(&rows, false);
        assert!(!shown.contains("met") && shown.contains("0.60") && shown.contains("0.500"), "{shown}");
    }
}

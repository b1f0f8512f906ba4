//! The comparison of two guests' suspends: each figure of each operation and number of vCPUs, the ratio, and what it was to be.
//!
//! Owns which figures are compared, and the targets. Pure. A ratio is taken within a round, where both met the same machine; shown are
//! the median of the rounds and, in brackets, the least and the greatest.

#![forbid(unsafe_code)]

use comfy_table::{CellAlignment, Table, presets};

use super::super::Side;
use super::super::table::Spread;
use super::{Boot, Sched, Suspended};
use crate::drive::cycles::Kind;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A rendezvous alone, until all others are stopped.
    Stopped,
    /// The same until the call returns. Linux' returns when all others have left, ours when they have been told to.
    Whole,
    /// The largest gap of the vCPU that had the largest.
    Blackout,
    /// What of that gap is not the hypercall.
    SeenOfGuest,
    /// From the request to the hypercall, and from its return until all is well.
    SaidOfGuest,
    /// The second part of that.
    Resume,
    /// The hypercall: Xen and the toolstack.
    Held,
}

/// Ours, by how much the resume of so many vCPUs may take longer than that of so few.
const GROWTH: (u32, u32, f64) = (4, 64, 4.0);

impl What {
    const ALL: [What; 7] =
        [What::Stopped, What::Whole, What::Blackout, What::SeenOfGuest, What::SaidOfGuest, What::Resume, What::Held];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            What::Stopped => "stop-machine, until stopped",
            What::Whole => "stop-machine, until it returns",
            What::Blackout => "blackout, worst vCPU",
            What::SeenOfGuest => "blackout less held",
            What::SaidOfGuest => "guest's own part",
            What::Resume => "of that, the resume",
            What::Held => "held by Xen",
        }
    }

    /// Ticks of a suspend; `None` for what is measured without one.
    fn of(self, suspended: &Suspended) -> Option<u64> {
        match self {
            What::Stopped | What::Whole => None,
            What::Blackout => Some(suspended.worst()),
            What::SeenOfGuest => Some(suspended.seen_of_guest()),
            What::SaidOfGuest => Some(suspended.said_of_guest()),
            What::Resume => Some(suspended.resume),
            What::Held => Some(suspended.held),
        }
    }

    /// Ticks in one boot: of its rendezvous without an operation, else the median of its suspends of this kind.
    fn in_boot(self, boot: &Boot, how: Option<Kind>) -> Option<f64> {
        match (self, how) {
            (What::Stopped, None) => Some(float(boot.stops.stopped.p50)),
            (What::Whole, None) => Some(float(boot.stops.whole.p50)),
            (_, None) => None,
            (_, Some(how)) => {
                let of = boot.suspends.iter().filter(|(kind, _)| *kind == how);
                let ticks: Vec<f64> = of.filter_map(|(_, suspended)| self.of(suspended).map(float)).collect();
                Spread::of(ticks).map(|spread| spread.median)
            }
        }
    }

    /// The most that the ratio was to be.
    fn target(self, sched: Sched, how: Option<Kind>, vcpus: u32) -> Option<f64> {
        let by_sched = |credit2: f64, credit: f64| Some(if sched == Sched::Credit2 { credit2 } else { credit });
        match (self, how) {
            (What::Stopped, _) if (4..=32).contains(&vcpus) => by_sched(1.0 / 20.0, 1.0 / 200.0),
            (What::SaidOfGuest, Some(Kind::Checkpoint | Kind::Migrate)) if [8, 32].contains(&vcpus) => {
                by_sched(1.0 / 20.0, 1.0 / 60.0)
            }
            (What::Blackout, Some(Kind::Migrate)) => Some(1.0 / 3.0),
            _ => None,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "four digits are shown")]
fn float(ticks: u64) -> f64 {
    ticks as f64
}

/// One line of the comparison; times in milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Under which scheduler.
    pub sched: Sched,
    /// Which figure.
    pub what: What,
    /// Of which operation; `None`: of a rendezvous alone.
    pub how: Option<Kind>,
    /// Of so many vCPUs.
    pub vcpus: u32,
    /// Ours.
    pub stasis: Option<Spread>,
    /// The peer's.
    pub linux: Option<Spread>,
    /// Ours by the peer's, round by round.
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

/// All rows: by scheduler, figure, operation, and number of vCPUs.
pub fn rows(boots: &[Boot], tsc_khz: u64) -> Vec<Row> {
    let mut vcpus: Vec<u32> = boots.iter().map(|boot| boot.vcpus).collect();
    vcpus.sort_unstable();
    vcpus.dedup();
    let operations = [None, Some(Kind::Checkpoint), Some(Kind::SaveRestore), Some(Kind::Migrate)];
    let mut rows = Vec::new();
    for sched in [Sched::Credit2, Sched::Credit] {
        for what in What::ALL {
            for how in operations {
                rows.extend(vcpus.iter().filter_map(|vcpus| row(boots, tsc_khz, (sched, what, how, *vcpus))));
            }
        }
    }
    rows
}

/// `None` where nobody has measured it.
fn row(boots: &[Boot], tsc_khz: u64, key: (Sched, What, Option<Kind>, u32)) -> Option<Row> {
    let (sched, what, how, vcpus) = key;
    let of = |side: Side| -> Vec<(u32, f64)> {
        let boots = boots.iter().filter(|boot| (boot.sched, boot.vcpus, boot.side) == (sched, vcpus, side));
        boots.filter_map(|boot| Some((boot.round, what.in_boot(boot, how)? / float(tsc_khz.max(1))))).collect()
    };
    let (ours, peers) = (of(Side::Stasis), of(Side::Linux));
    let ratios = ours.iter().filter_map(|(round, ms)| {
        let (_, peer) = peers.iter().find(|(of, peer)| of == round && *peer > 0.0)?;
        Some(ms / peer)
    });
    let ratio = Spread::of(ratios.collect());
    let spread = |of: &[(u32, f64)]| Spread::of(of.iter().map(|(_, ms)| *ms).collect());
    let (stasis, linux) = (spread(&ours), spread(&peers));
    (stasis.is_some() || linux.is_some()).then(|| Row {
        sched,
        what,
        how,
        vcpus,
        stasis,
        linux,
        ratio,
        target: what.target(sched, how, vcpus),
    })
}

/// How our resumes grow with the number of vCPUs, a line for each scheduler and operation; empty where not both numbers were measured.
pub fn growth(rows: &[Row]) -> String {
    let (few, many, target) = GROWTH;
    let resumes = |vcpus| rows.iter().filter(move |row| (row.what, row.vcpus) == (What::Resume, vcpus));
    let lines = resumes(few).filter_map(|of_few| {
        let of_many = resumes(many).find(|row| (row.sched, row.how) == (of_few.sched, of_few.how))?;
        let ratio = of_many.stasis?.median / of_few.stasis?.median;
        let judged = if ratio <= target { "met" } else { "missed" };
        let (sched, how) = (of_few.sched.name(), of_few.how.map_or("", Kind::name));
        Some(format!(
            "{sched}, {how}: stasis resumes {many} vCPUs in {ratio:.2} times what it takes with {few}, at most {target}: {judged}"
        ))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A table for each scheduler.
pub fn render(rows: &[Row]) -> String {
    let scheds = [Sched::Credit2, Sched::Credit];
    let of = scheds.map(|sched| (sched, rows.iter().filter(|row| row.sched == sched).collect::<Vec<_>>()));
    let tables = of.iter().filter(|(_, rows)| !rows.is_empty());
    tables.map(|(sched, rows)| format!("under {}:\n{}", sched.name(), one(rows))).collect::<Vec<_>>().join("\n\n")
}

fn one(rows: &[&Row]) -> String {
    let mut table = Table::new();
    let headers = ["figure", "operation", "vCPUs", "stasis ms", "linux ms", "ratio", "at most", "target"];
    table.load_style(presets::UTF8_BORDERS_ONLY).set_header(headers);
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for row in rows {
        let shown =
            |spread: Option<Spread>, digits| spread.map_or_else(|| "-".to_owned(), |spread| spread.show(digits));
        let judged = match row.met() {
            Some(true) => "met",
            Some(false) => "missed",
            None => "",
        };
        // A rendezvous of idle vCPUs is a matter of microseconds.
        let digits = if row.how.is_none() { 3 } else { 1 };
        table.add_row([
            row.what.name().to_owned(),
            row.how.map_or("", Kind::name).to_owned(),
            row.vcpus.to_string(),
            shown(row.stasis, digits),
            shown(row.linux, digits),
            shown(row.ratio, 4),
            row.target.map_or_else(String::new, |most| format!("{most:.4}")),
            judged.to_owned(),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::super::{Stops, Times};
    use super::*;

    const KHZ: u64 = 1000;

    fn boot(sched: Sched, round: u32, vcpus: u32, side: Side, held: u64, own: u64) -> Boot {
        let suspended = |held| Suspended {
            continued: false,
            prepare: own / 2,
            held,
            resume: own / 2,
            gaps: vec![held + own, held + own / 4],
        };
        let stopped = Times { min: 1, p50: own, max: own };
        let stops = Stops { n: 3, stopped, whole: Times { p50: 2 * own, ..stopped } };
        let suspends = vec![(Kind::Checkpoint, suspended(held)), (Kind::Migrate, suspended(2 * held))];
        Boot { sched, round, vcpus, side, stops, suspends }
    }

    fn find(rows: &[Row], what: What, how: Option<Kind>, vcpus: u32) -> &Row {
        let found = rows.iter().find(|row| (row.what, row.how, row.vcpus) == (what, how, vcpus));
        found.expect("it was measured")
    }

    #[test]
    fn figures_are_of_the_worst_vcpu_and_ratios_within_a_round() {
        let boots = [
            boot(Sched::Credit2, 1, 8, Side::Stasis, 100_000, 10_000),
            boot(Sched::Credit2, 1, 8, Side::Linux, 300_000, 1_000_000),
            boot(Sched::Credit2, 2, 8, Side::Linux, 300_000, 200_000),
            boot(Sched::Credit2, 2, 8, Side::Stasis, 100_000, 20_000),
            boot(Sched::Credit2, 3, 8, Side::Stasis, 100_000, 20_000),
        ];
        let rows = rows(&boots, KHZ);
        let migrate = Some(Kind::Migrate);
        let spread = |row: &Row| row.stasis.map(|s| (s.median, s.least, s.greatest));
        assert_eq!(spread(find(&rows, What::Blackout, migrate, 8)), Some((220.0, 210.0, 220.0)));
        assert_eq!(spread(find(&rows, What::SeenOfGuest, migrate, 8)), Some((20.0, 10.0, 20.0)));
        assert_eq!(spread(find(&rows, What::Held, Some(Kind::Checkpoint), 8)), Some((100.0, 100.0, 100.0)));
        let own = find(&rows, What::SaidOfGuest, migrate, 8);
        assert_eq!(own.ratio.map(|r| (r.least, r.greatest)), Some((0.01, 0.1)), "round 3 has nobody to compare with");
        assert_eq!((own.target, own.met()), (Some(0.05), Some(false)), "the median of both is above");
        assert_eq!(spread(find(&rows, What::Whole, None, 8)), Some((40.0, 20.0, 40.0)));
        assert!(rows.iter().all(|row| row.how != Some(Kind::SaveRestore)), "nobody has measured it");
    }

    #[test]
    fn targets_are_those_of_the_scheduler() {
        let boots: Vec<Boot> = [Sched::Credit2, Sched::Credit]
            .into_iter()
            .flat_map(|sched| [2, 8].map(|vcpus| (sched, vcpus)))
            .flat_map(|(sched, vcpus)| [Side::Stasis, Side::Linux].map(|side| boot(sched, 1, vcpus, side, 4, 4)))
            .collect();
        let rows = rows(&boots, KHZ);
        let target = |sched, what, how, vcpus| {
            let of_sched: Vec<Row> = rows.iter().filter(|row| row.sched == sched).cloned().collect();
            find(&of_sched, what, how, vcpus).target
        };
        assert_eq!(target(Sched::Credit2, What::Stopped, None, 8), Some(0.05));
        assert_eq!(target(Sched::Credit, What::Stopped, None, 8), Some(0.005));
        assert_eq!(target(Sched::Credit, What::Stopped, None, 2), None);
        assert_eq!(target(Sched::Credit, What::SaidOfGuest, Some(Kind::Checkpoint), 8), Some(1.0 / 60.0));
        assert_eq!(target(Sched::Credit, What::SeenOfGuest, Some(Kind::Checkpoint), 8), None);
        assert_eq!(target(Sched::Credit2, What::Blackout, Some(Kind::Migrate), 2), Some(1.0 / 3.0));
    }

    #[test]
    fn a_resume_of_many_is_held_against_one_of_few() {
        let with = |sched, vcpus, own| boot(sched, 1, vcpus, Side::Stasis, 100_000, own);
        let boots = [
            with(Sched::Credit2, 4, 1000),
            with(Sched::Credit2, 64, 4000),
            with(Sched::Credit, 64, 4001),
            with(Sched::Credit, 4, 1000),
            with(Sched::Credit, 8, 9000),
        ];
        let told = growth(&rows(&boots, KHZ));
        let told: Vec<&str> = told.lines().collect();
        let of =
            |sched: &str, judged: &str| told.iter().filter(|l| l.starts_with(sched) && l.ends_with(judged)).count();
        // Checkpoint and migration of each. Half of `own` is the resume, in whole ticks.
        assert_eq!((told.len(), of("credit2,", "4.00 times what it takes with 4, at most 4: met")), (4, 2), "{told:?}");
        assert_eq!(of("credit,", "4: met"), 2, "{told:?}");
        let boots = [with(Sched::Credit2, 4, 1000), with(Sched::Credit2, 64, 4100)];
        assert!(growth(&rows(&boots, KHZ)).contains("4.10 times what it takes with 4, at most 4: missed"));
        assert_eq!(growth(&rows(&boots[..1], KHZ)), "", "nothing to compare with");
    }

    #[test]
    fn one_side_alone_is_shown_too() {
        let shown = render(&rows(&[boot(Sched::Credit, 1, 2, Side::Stasis, 1_500_000, 2000)], KHZ));
        for part in ["under credit:", "save -c", "1502.0", "2.000", "blackout less held"] {
            assert!(shown.contains(part), "{part} is not in\n{shown}");
        }
        assert!(!shown.contains("credit2") && !shown.contains("met"), "{shown}");
    }
}

//! From marks to times: what vcpu 0 remembers of each suspend, and the longest times of all vcpus. Pure.

use percpu::CpuId;
use smp::Outcome;
use smp::trace::{Mark, Record, Stage, WHOLE, WORDS, spans};

use crate::time::Scale;

/// Suspends that are remembered: as many as vcpu 0's ring holds whole.
pub(crate) const KEPT: usize = WHOLE;

/// What is known of a suspend beside the marks.
#[derive(Clone, Copy)]
pub(crate) struct Suspend {
    /// Its number.
    pub(crate) number: u64,
    /// Guest time when it was asked for; what all times of its marks count from.
    pub(crate) asked_ns: u64,
    /// For marks from before the hypercall.
    pub(crate) before: Scale,
    /// For marks from after it, and how it ended; `None` where it was given up before.
    pub(crate) after: Option<(Scale, Outcome)>,
}

impl Suspend {
    /// The marks of a CPU, and when each was made, in ns since the suspend was asked for.
    ///
    /// vcpu 0 knows by itself when it came back. Any other has either not been stopped or is released after that.
    pub(crate) fn marks(&self, record: &Record<WORDS>) -> impl Iterator<Item = (Mark, u64)> + Clone {
        let after = self.after.map(|(scale, _)| scale);
        let (before, asked_ns) = (self.before, self.asked_ns);
        record.marks().scan(before, move |scale, (mark, stamp)| {
            if matches!(mark, Mark::Back | Mark::Released) {
                *scale = after.unwrap_or(before);
            }
            let guest_ns = scale.guest_ns(stamp.near(scale.some_tsc()));
            Some((mark, guest_ns.saturating_sub(asked_ns)))
        })
    }

    /// In a word.
    pub(crate) fn outcome(&self) -> &'static str {
        match self.after {
            Some((_, Outcome::Resumed)) => "resumed",
            Some((_, Outcome::Continued)) => "continued",
            Some((_, Outcome::Cancelled)) | None => "aborted",
        }
    }
}

/// The last suspends, the newest first.
#[derive(Default)]
pub(crate) struct Suspends([Option<Suspend>; KEPT]);

impl Suspends {
    /// Begins to remember suspend `number`, in the place of the oldest.
    pub(crate) fn begin(&mut self, number: u64, asked_ns: u64, before: Scale) {
        self.0.rotate_right(1);
        self.0[0] = Some(Suspend { number, asked_ns, before, after: None });
    }

    /// Changes what is known of the last one.
    pub(crate) fn with_last(&mut self, change: impl FnOnce(&mut Suspend)) {
        if let Some(last) = &mut self.0[0] {
            change(last);
        }
    }

    /// What is known of suspend `number`.
    pub(crate) fn get(&self, number: u64) -> Option<&Suspend> {
        self.0.iter().flatten().find(|suspend| suspend.number == number)
    }
}

/// The times that CPUs spent on one stage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Time {
    /// How many CPUs had part in it.
    pub(crate) nr_cpus: usize,
    /// The least of them.
    pub(crate) least_ns: u64,
    /// The most.
    pub(crate) most_ns: u64,
    /// On which CPU that was; the first of several.
    pub(crate) most_on: CpuId,
}

/// The longest time of each stage.
#[derive(Default)]
pub(crate) struct Longest {
    times: [Option<Time>; Stage::ALL.len()],
    nr_cpus: usize,
}

impl Longest {
    /// Adds the marks of `cpu`, as [`Suspend::marks`] has them; `released_ns` is when vcpu 0 released it.
    pub(crate) fn add(
        &mut self,
        cpu: CpuId,
        marks: impl Iterator<Item = (Mark, u64)> + Clone,
        released_ns: Option<u64>,
    ) {
        self.nr_cpus += 1;
        let mut mine = [None; Stage::ALL.len()];
        for span in spans(marks, released_ns) {
            let sum: &mut Option<u64> = &mut mine[span.stage as usize];
            *sum = Some(sum.unwrap_or(0) + span.ns());
        }
        for (time, ns) in self.times.iter_mut().zip(mine) {
            let Some(ns) = ns else { continue };
            let time = time.get_or_insert(Time { nr_cpus: 0, least_ns: ns, most_ns: ns, most_on: cpu });
            time.nr_cpus += 1;
            time.least_ns = time.least_ns.min(ns);
            if ns > time.most_ns {
                (time.most_ns, time.most_on) = (ns, cpu);
            }
        }
    }

    /// How many CPUs have been added.
    pub(crate) fn nr_cpus(&self) -> usize {
        self.nr_cpus
    }

    /// The stages that any CPU had part in, in their order.
    pub(crate) fn stages(&self) -> impl Iterator<Item = (Stage, Time)> {
        Stage::ALL.into_iter().zip(self.times).filter_map(|(stage, time)| Some((stage, time?)))
    }
}

#[cfg(test)]
mod tests {
    use smp::trace::Ring;

    use super::*;

    fn cpu(n: usize) -> CpuId {
        CpuId::new(n).expect("tests use small numbers")
    }

    fn record(marks: &[(Mark, u64)]) -> Record<WORDS> {
        let ring = Ring::<WORDS>::new();
        ring.begin(1);
        marks.iter().for_each(|(mark, tsc)| ring.mark(*mark, *tsc));
        ring.read(1).expect("just begun")
    }

    /// Asked for at guest time 100; the old host's TSC is far ahead of the new one's.
    fn suspend(outcome: Outcome) -> Suspend {
        let mut suspends = Suspends::default();
        suspends.begin(1, 100, Scale::at(9_000_000, 150));
        suspends.with_last(|suspend| suspend.after = Some((Scale::at(40, 2100), outcome)));
        *suspends.get(1).expect("just begun")
    }

    #[test]
    fn marks_from_before_and_after_go_onto_one_line() {
        let suspend = suspend(Outcome::Resumed);
        let zero =
            record(&[(Mark::Asked, 8_999_950), (Mark::Suspending, 9_000_100), (Mark::Back, 30), (Mark::Timer, 60)]);
        let times: Vec<u64> = suspend.marks(&zero).map(|(_, ns)| ns).collect();
        assert_eq!(times, [0, 150, 1990, 2020]);
        let other = record(&[(Mark::Kicked, 9_000_050), (Mark::Arrived, 9_000_080), (Mark::Released, 50)]);
        let times: Vec<u64> = suspend.marks(&other).map(|(_, ns)| ns).collect();
        assert_eq!(times, [100, 130, 2010]);
    }

    #[test]
    fn without_an_end_there_is_one_scale() {
        let mut suspend = suspend(Outcome::Cancelled);
        suspend.after = None;
        let late = record(&[(Mark::Parked, 9_000_000), (Mark::Released, 9_000_010)]);
        assert_eq!(suspend.marks(&late).map(|(_, ns)| ns).collect::<Vec<_>>(), [50, 60]);
        assert_eq!(suspend.outcome(), "aborted");
    }

    #[test]
    fn the_last_ones_are_remembered() {
        let mut suspends = Suspends::default();
        for number in 1..=10 {
            suspends.begin(number, number, Scale::at(0, 0));
            suspends.with_last(|suspend| suspend.asked_ns += 100);
            let known: Vec<u64> =
                (0..=number).filter_map(|n| suspends.get(n)).map(|suspend| suspend.asked_ns).collect();
            let oldest = number.saturating_sub(KEPT as u64 - 1).max(1);
            assert!(known.iter().copied().eq(oldest + 100..=number + 100), "{known:?}");
        }
    }

    #[test]
    fn the_longest_of_each_stage_is_named() {
        let mut longest = Longest::default();
        let marks = |arrived, released| {
            [(Mark::Kicked, 0), (Mark::Parked, 5), (Mark::Arrived, arrived), (Mark::Released, released)]
        };
        for (n, arrived) in [(1, 10), (2, 30), (3, 20)] {
            longest.add(cpu(n), marks(arrived, 40).into_iter(), None);
        }
        let got: Vec<(Stage, Time)> = longest.stages().collect();
        assert_eq!(
            got,
            [
                (Stage::Gather, Time { nr_cpus: 3, least_ns: 10, most_ns: 30, most_on: cpu(2) }),
                (Stage::Notice, Time { nr_cpus: 3, least_ns: 10, most_ns: 30, most_on: cpu(1) }),
            ]
        );
        assert_eq!(longest.nr_cpus(), 3);
    }

    #[test]
    fn standing_still_is_not_the_cpus_own_time() {
        let mut longest = Longest::default();
        longest.add(cpu(1), [(Mark::Arrived, 10), (Mark::Released, 1000), (Mark::Timer, 1010)].into_iter(), Some(990));
        let times: Vec<(Stage, u64)> = longest.stages().map(|(stage, time)| (stage, time.most_ns)).collect();
        assert_eq!(times, [(Stage::Stand, 980), (Stage::Notice, 10), (Stage::Prove, 10)]);
    }
}

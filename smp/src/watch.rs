//! [`Limits`]: how long a leader waits for the others, and [`Watch`], which holds it to that.
//!
//! Context: the leader, in its wait. Suspend: holds nothing over one; the wait is over before.
#![forbid(unsafe_code)]

use crate::missing::Missing;
use crate::relax::Clock;

/// How long a leader waits before its work. All from the call on, in ns.
///
/// Where vcpus outnumber processors, and others' vcpus ours, the last one may have its turn late; but some come all the time.
/// So a rendezvous is given up when nobody came for a while, and not when all together took long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// When the missing are named.
    pub overdue_ns: u64,
    /// When nobody has come for so long, the missing hang. Found out at most as much again later.
    pub stuck_ns: u64,
    /// Whoever asked for it would not wait for more.
    pub total_ns: u64,
}

impl Limits {
    /// One limit, and nobody is told before.
    pub const fn only(total_ns: u64) -> Limits {
        Limits { overdue_ns: u64::MAX, stuck_ns: total_ns, total_ns }
    }
}

/// How long a leader has waited, and what is to be done about it.
pub(crate) struct Watch<'a, C: ?Sized> {
    clock: &'a C,
    overdue: Option<&'a dyn Fn(&Missing)>,
    overdue_ns: u64,
    stuck_ns: u64,
    deadline_ns: u64,
    end_ns: u64,
    /// Yet to come when the last deadline was set.
    left: usize,
}

pub(crate) enum Look {
    /// Wait on, so long at most.
    Wait { left_ns: u64 },
    /// Say who is missing, and wait on.
    Tell,
    /// The time is up.
    Over,
}

impl<'a, C: Clock + ?Sized> Watch<'a, C> {
    /// A wait that begins now. `overdue` is told once who is missing.
    pub(crate) fn new(clock: &'a C, limits: Limits, overdue: &'a dyn Fn(&Missing)) -> Watch<'a, C> {
        let now_ns = clock.now_ns();
        let Limits { overdue_ns, stuck_ns, total_ns } = limits;
        Watch {
            clock,
            overdue: Some(overdue),
            overdue_ns: now_ns.saturating_add(overdue_ns),
            stuck_ns,
            deadline_ns: now_ns.saturating_add(stuck_ns.min(total_ns)),
            end_ns: now_ns.saturating_add(total_ns),
            left: usize::MAX,
        }
    }

    /// From here on others are counted than before.
    pub(crate) fn counts_anew(&mut self) {
        self.left = usize::MAX;
    }

    /// What is to be done. `left`: how many are yet to come.
    pub(crate) fn look(&mut self, left: usize) -> Look {
        let now_ns = self.clock.now_ns();
        if now_ns >= self.deadline_ns {
            if left >= self.left || now_ns >= self.end_ns {
                return Look::Over;
            }
            self.left = left;
            self.deadline_ns = now_ns.saturating_add(self.stuck_ns).min(self.end_ns);
        }
        if self.overdue.is_some() && now_ns >= self.overdue_ns {
            return Look::Tell;
        }
        let next_ns = if self.overdue.is_some() { self.deadline_ns.min(self.overdue_ns) } else { self.deadline_ns };
        Look::Wait { left_ns: next_ns - now_ns }
    }

    /// Tells who is missing, if that has not been told.
    pub(crate) fn tell(&mut self, missing: &Missing) {
        if let (Some(overdue), false) = (self.overdue.take(), missing.cpus.is_empty()) {
            overdue(missing);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::tests::Looks;

    #[test]
    fn as_long_as_some_come_the_leader_waits() {
        let look = |looks: &Looks| looks.0.get();
        let clock = Looks::default();
        let limits = Limits { overdue_ns: u64::MAX, stuck_ns: 10, total_ns: 100 };
        let mut watch = Watch::new(&clock, limits, &|_| ());
        let mut left = 50;
        while !matches!(watch.look(left), Look::Over) {
            // One in seven looks.
            left -= usize::from(look(&clock).is_multiple_of(7));
        }
        assert_eq!(look(&clock), 101, "to the end of its time");
        let mut watch = Watch::new(&clock, limits, &|_| ());
        let begun = look(&clock);
        while !matches!(watch.look(3), Look::Over) {}
        assert_eq!(look(&clock) - begun, 20, "twice as long as it takes to be stuck");
    }

    /// After the last rendezvous has been left nobody is counted any more; then all are yet to come.
    #[test]
    fn a_new_count_is_not_compared_with_the_last_one() {
        let clock = Looks::default();
        let mut watch = Watch::new(&clock, Limits { overdue_ns: u64::MAX, stuck_ns: 10, total_ns: 100 }, &|_| ());
        for _ in 0..11 {
            assert!(matches!(watch.look(0), Look::Wait { .. }));
        }
        watch.counts_anew();
        for _ in 0..10 {
            assert!(matches!(watch.look(50), Look::Wait { .. }), "given up on those who had just been asked");
        }
    }
}

//! What is made of numbered calls: by the CPU that receives them, and by the one that sent them and waits for their end.
//!
//! - A number that is left out is *lost*, the same one again is *doubled*, a lower one is *reordered*, one of another sender than
//!   the CPU before this one is *astray*.
//! - A call that has not been run for so many beats of its sender is *late*: nothing that came behind it could show that it is
//!   missing. The calls behind it are late with it; that is told once.
//!
//! Plain counting, no hypercall: the host tests it.
#![forbid(unsafe_code)]

use xen_sys::primitive::sync::atomic::{AtomicU64, Ordering};

/// Counts of one CPU. Written by its CPU, read by anybody. Suspend: *kept*.
#[derive(Default)]
pub(super) struct Wrongs {
    pub(super) lost: AtomicU64,
    pub(super) doubled: AtomicU64,
    pub(super) reordered: AtomicU64,
    pub(super) astray: AtomicU64,
    pub(super) late: AtomicU64,
}

impl Wrongs {
    /// With their names.
    pub(super) fn all(&self) -> [(&'static str, u64); 5] {
        [
            ("lost", &self.lost),
            ("doubled", &self.doubled),
            ("reordered", &self.reordered),
            ("astray", &self.astray),
            ("late", &self.late),
        ]
        // ORDERING: Relaxed, statistics.
        .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }

    pub(super) fn total(&self) -> u64 {
        self.all().map(|(_, count)| count).iter().sum()
    }
}

fn add(count: &AtomicU64, n: u64) {
    count.fetch_add(n, Ordering::Relaxed); // ORDERING: Relaxed, statistics.
}

/// The numbers that a CPU has received.
#[derive(Default)]
pub(super) struct Received {
    /// The highest. Written by its CPU, in upcalls.
    last: AtomicU64,
}

impl Received {
    /// `number` came from the CPU `from`; `before` is the one that sends to us.
    pub(super) fn take(&self, from: usize, before: usize, number: u64, wrongs: &Wrongs) {
        if from != before {
            add(&wrongs.astray, 1);
            return;
        }
        // ORDERING: Relaxed twice, only upcalls of this CPU touch it.
        let last = self.last.load(Ordering::Relaxed);
        match number.checked_sub(last) {
            None => add(&wrongs.reordered, 1),
            Some(0) => add(&wrongs.doubled, 1),
            Some(step) => {
                add(&wrongs.lost, step - 1);
                self.last.store(number, Ordering::Relaxed);
            }
        }
    }
}

/// How long one call has been under way.
#[derive(Default)]
pub(super) struct Age {
    beats: u32,
    /// One that was sent later has been run: the receiver has counted this one.
    overtaken: bool,
}

/// Whether calls are being run at all, as their sender sees it.
pub(super) struct Stall {
    late_beats: u32,
    told: bool,
}

impl Stall {
    /// A call is late after `late_beats` of its sender.
    pub(super) fn new(late_beats: u32) -> Stall {
        Stall { late_beats, told: false }
    }

    /// A beat has passed, in which calls have ended or not. `under_way` are those that have not, oldest first, with whether one
    /// that was sent later has ended.
    pub(super) fn beat<'a>(
        &mut self,
        any_ended: bool,
        under_way: impl Iterator<Item = (&'a mut Age, bool)>,
        wrongs: &Wrongs,
    ) {
        self.told &= !any_ended;
        let mut is_late = false;
        for (age, overtaken) in under_way {
            age.beats = age.beats.saturating_add(1);
            age.overtaken |= overtaken;
            is_late |= !age.overtaken && age.beats >= self.late_beats;
        }
        if is_late && !self.told {
            self.told = true;
            add(&wrongs.late, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(numbers: &[(usize, u64)]) -> Vec<(&'static str, u64)> {
        let (received, wrongs) = (Received::default(), Wrongs::default());
        for (from, number) in numbers {
            received.take(*from, 3, *number, &wrongs);
        }
        wrongs.all().into_iter().filter(|(_, count)| *count != 0).collect()
    }

    #[test]
    fn numbers_tell_what_went_wrong() {
        assert_eq!(of(&[(3, 1), (3, 2), (3, 3)]), []);
        assert_eq!(of(&[(3, 1), (3, 4)]), [("lost", 2)]);
        assert_eq!(of(&[(3, 1), (3, 2), (3, 2)]), [("doubled", 1)]);
        assert_eq!(of(&[(3, 1), (3, 3), (3, 2), (3, 4)]), [("lost", 1), ("reordered", 1)]);
        assert_eq!(of(&[(3, 1), (2, 2), (3, 2)]), [("astray", 1)]);
    }

    #[test]
    fn a_stall_is_told_once_and_again_after_it_has_ended() {
        let wrongs = Wrongs::default();
        let mut stall = Stall::new(10);
        let mut ages = [Age::default(), Age::default(), Age::default()];
        let mut beats = |ages: &mut [Age], nr: u32, ended: bool| {
            for _ in 0..nr {
                stall.beat(ended, ages.iter_mut().map(|age| (age, false)), &wrongs);
            }
            wrongs.total()
        };
        assert_eq!(beats(&mut ages, 9, false), 0);
        assert_eq!(beats(&mut ages, 1, false), 1);
        assert_eq!(beats(&mut ages, 100, false), 1, "not for each call, nor each beat");
        assert_eq!(beats(&mut [], 1, true), 1);
        assert_eq!(beats(&mut [Age::default()], 10, false), 2);
    }

    #[test]
    fn one_that_was_overtaken_is_the_receivers() {
        let wrongs = Wrongs::default();
        let mut stall = Stall::new(2);
        let mut age = Age::default();
        stall.beat(true, [(&mut age, true)].into_iter(), &wrongs);
        for _ in 0..10 {
            stall.beat(false, [(&mut age, false)].into_iter(), &wrongs);
        }
        assert_eq!(wrongs.total(), 0);
    }
}

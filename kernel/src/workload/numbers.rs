//! What is made of numbered calls: by the CPU that receives them, and by the one that sent them and waits for their end.
//!
//! - A number that is left out is *lost*, the same one again is *doubled*, a lower one is *reordered*, one of another sender than
//!   the CPU before this one is *astray*.
//! - A call that has not been run though its receiver has beaten often since is *late*: each beat is an upcall there, and an upcall
//!   takes all that is pending. Nothing that came behind it could show that it is missing. The calls behind it are late with
//!   it; that is told once. The receiver's beats, not time: a vcpu that Xen does not run, or that is parked, loses nothing.
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
pub(super) struct Age {
    /// The receiver's beats when it had been sent.
    since: u64,
    /// One that was sent later has been run: the receiver has counted this one.
    overtaken: bool,
}

impl Age {
    /// Of a call that has just been sent, after which the receiver had beaten `beats` times.
    pub(super) fn new(beats: u64) -> Age {
        Age { since: beats, overtaken: false }
    }
}

/// A call is late after so many beats of its receiver. One would do if it began after the call; the rest is for good measure.
pub(super) const LATE_BEATS: u64 = 8;

/// Whether calls are being run at all, as their sender sees it.
#[derive(Default)]
pub(super) struct Stall {
    told: bool,
}

impl Stall {
    /// The sender looks: since it last did, calls have ended or not, and the receiver has beaten `beats` times in all. `under_way`
    /// are those that have not ended, oldest first, with whether one that was sent later has.
    pub(super) fn look<'a>(
        &mut self,
        any_ended: bool,
        beats: u64,
        under_way: impl Iterator<Item = (&'a mut Age, bool)>,
        wrongs: &Wrongs,
    ) {
        self.told &= !any_ended;
        let mut is_late = false;
        for (age, overtaken) in under_way {
            age.overtaken |= overtaken;
            if any_ended {
                // The receiver is running them, and may have been put aside between two: it has its beats anew, none of which it takes
                // before it has run all that had come.
                age.since = beats;
            }
            is_late |= !age.overtaken && beats - age.since >= LATE_BEATS;
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
        let mut stall = Stall::default();
        let mut ages = [Age::new(100), Age::new(100), Age::new(101)];
        let mut look = |ages: &mut [Age], beats: u64, ended: bool| {
            stall.look(ended, beats, ages.iter_mut().map(|age| (age, false)), &wrongs);
            wrongs.total()
        };
        for _ in 0..100 {
            assert_eq!(look(&mut ages, 99 + LATE_BEATS, false), 0, "the receiver has not beaten");
        }
        for beats in 100..200 {
            assert_eq!(look(&mut ages, beats + LATE_BEATS, false), 1, "not for each call, nor each beat");
        }
        // The stall ends: the receiver has run one of two, and is put aside before the other, which is as old.
        let mut ages = [Age::new(100)];
        assert_eq!(look(&mut ages, 290, true), 1, "seen half way");
        assert_eq!(look(&mut ages, 290 + LATE_BEATS - 1, false), 1);
        assert_eq!(look(&mut [], 300, true), 1);
        assert_eq!(look(&mut [Age::new(300)], 300 + LATE_BEATS, false), 2);
    }

    #[test]
    fn one_that_was_overtaken_is_the_receivers() {
        let wrongs = Wrongs::default();
        let mut stall = Stall::default();
        let mut age = Age::new(0);
        stall.look(true, 1, [(&mut age, true)].into_iter(), &wrongs);
        stall.look(false, 100, [(&mut age, false)].into_iter(), &wrongs);
        assert_eq!(wrongs.total(), 0);
    }
}

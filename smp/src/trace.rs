//! [`Trace`]: when each CPU reached what in the last suspends.
//!
//! Each CPU has a [`Ring`] that it alone writes, and [marks](Mark) in it what it has reached, with the TSC. vCPU 0
//! numbers the suspends; each CPU begins its record of one when it first hears of it ([`Trace::join`]). Nothing is
//! added up and nothing converted before somebody asks.
//!
//! A mark takes no lock, allocates nothing, calls nobody, writes no line that another CPU writes, and needs nothing of
//! Xen's: no clock page, no port. So it may stand anywhere but between a follower's acknowledgement and its release,
//! where nothing may stand. There is one clock, the TSC, which two things can bend:
//!
//! - A suspend, after which it may be another host's. Marks from before the hypercall and those from after it are put
//!   onto the guest's time line by a scale each; what was between them is as long as guest time says.
//! - Processors whose TSCs differ (where Xen does not vouch for them). Then marks of two CPUs are off by that. Where Xen
//!   traps RDTSC instead it gives a CPU that is behind the last value of all plus one, and its stretches shrink to
//!   nothing: seen in the lab, with processors 270 ms apart. A guest with `tsc_mode="native"` is spared that.
//!
//! Turned down: guest time in the marks (a mark between the hypercall and the rebased clock has none); marks by a trait
//! of the kernel's that may do anything (a mark has to stay what it is).

mod mark;
mod ring;
mod span;

use crossbeam_utils::CachePadded;
use percpu::{CpuId, Masked, PerCpu};
use xen_sys::primitive::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use xen_sys::primitive::sync::atomic::{AtomicU64, fence};

pub use mark::{Mark, Stage};
pub use ring::{Record, Ring, Stamp};
pub use span::{Span, spans};

/// Words of each CPU.
pub const WORDS: usize = 128;

/// Words that a suspend takes of vCPU 0 at most, one that has gone on in a new domain: a head and a mark for each step. Of any other it takes
/// 12.
pub const OF_BOOT_CPU: usize = 33;

/// Suspends that are there whole, but for those that other rendezvous lie between. A word is always being written.
pub const WHOLE: usize = (WORDS - 1) / OF_BOOT_CPU;

/// A CPU's ring, and which record it writes.
struct Slot {
    ring: Ring<WORDS>,
    /// What `now` was when this CPU looked last. Written and read by the CPU itself.
    seen: AtomicU64,
}

/// The rings of all CPUs. Suspend: *kept*.
///
/// | `now`, bit 0 | 1..=63 | meaning |
/// |---|---|---|
/// | 1 | number | the rendezvous of suspend `number` is asked for, or was the last one; the first is 1 |
/// | 0 | number | a rendezvous now is of no suspend; `number` was the last that had one |
///
/// A suspend takes long on vCPU 0, before its rendezvous and after it, and another rendezvous may come in between, to take a vcpu
/// down. vCPU 0 steps [aside](Trace::aside) for it: what any CPU marks in it is of no suspend.
pub struct Trace {
    /// Written by vCPU 0 twice a suspend, read by each CPU when it hears of a rendezvous.
    now: CachePadded<AtomicU64>,
    /// The suspend that vCPU 0 began last. Written and read by vCPU 0.
    last: AtomicU64,
    /// That which was over last. Written and read by vCPU 0.
    last_over: AtomicU64,
    slots: PerCpu<Slot>,
}

impl Trace {
    /// What stands in place of a number in records that are of no suspend.
    const NONE: u64 = 0;

    /// Empty rings for the first `nr` CPUs.
    pub fn new(nr: usize) -> Trace {
        Trace {
            now: CachePadded::new(AtomicU64::new(0)),
            last: AtomicU64::new(0),
            last_over: AtomicU64::new(0),
            slots: PerCpu::new(nr, |_| Slot { ring: Ring::new(), seen: AtomicU64::new(0) }),
        }
    }

    /// A suspend begins; its number. Context: vCPU 0, as soon as it hears of it.
    pub fn begin(&self, _masked: &Masked) -> u64 {
        let number = self.last() + 1;
        // ORDERING: Relaxed, ours.
        self.last.store(number, Relaxed);
        self.slots.mine().ring.begin(number);
        number
    }

    /// The rendezvous of the suspend that has begun is next. Context: vCPU 0.
    pub fn gather(&self, _masked: &Masked) {
        self.announce(self.last() << 1 | 1);
        // ORDERING: Release, pairs with the fence in `join`: who sees the rendezvous that we are about to ask for, by its
        //   phase word or by an IPI, sees the number.
        fence(Release);
    }

    /// The suspend is over: it was told of, or given up. Marks of a CPU that has still to find something to do are of
    /// it all the same. Context: vCPU 0.
    pub fn end(&self) {
        // ORDERING: Relaxed, ours.
        self.last_over.store(self.last(), Relaxed);
        self.close();
    }

    /// What others hear of from here on, if a fence follows; a rendezvous' IPI to vCPU 0 itself is no news to it.
    fn announce(&self, now: u64) {
        // ORDERING: Relaxed, by the fence.
        self.now.store(now, Relaxed);
        // ORDERING: Relaxed, ours.
        self.slots.mine().seen.store(now, Relaxed);
    }

    /// A rendezvous from here on is of no suspend.
    fn close(&self) {
        // ORDERING: Relaxed, we have stored it. Without a fence whoever sees it late only adds to a record of the past.
        self.announce(self.now.load(Relaxed) & !1);
    }

    /// Does `other`, a rendezvous that is not the suspend's which may be under way: what is marked in it is of none. Context: vCPU 0.
    pub fn aside<T>(&self, other: impl FnOnce() -> T) -> T {
        // Of the suspend's own rendezvous, if that is over, nobody has to hear any more.
        self.close();
        // ORDERING: Release, pairs with the fence in `join`, as in `gather`.
        fence(Release);
        let ring = &self.slots.mine().ring;
        ring.begin(Trace::NONE);
        let result = other();
        if self.last() != self.last_over() {
            ring.go_on(self.last());
        }
        result
    }

    /// This CPU has heard of a rendezvous. Whether it is of a suspend and that is news to it: then its record begins.
    /// Context: after it has seen that a rendezvous is asked for.
    pub fn join(&self, _masked: &Masked) -> bool {
        let slot = self.slots.mine();
        // ORDERING: Acquire, pairs with the fences in `gather` and `aside`.
        fence(Acquire);
        // ORDERING: Relaxed, by the fence.
        let now = self.now.load(Relaxed);
        // ORDERING: Relaxed both, ours alone.
        if slot.seen.load(Relaxed) == now {
            return false;
        }
        slot.seen.store(now, Relaxed);
        let of_a_suspend = now & 1 != 0;
        slot.ring.begin(if of_a_suspend { now >> 1 } else { Trace::NONE });
        of_a_suspend
    }

    /// What this CPU marks from here on is of no suspend: it comes to life by itself.
    pub fn leave(&self, _masked: &Masked) {
        self.slots.mine().ring.begin(Trace::NONE);
    }

    /// This CPU has reached `mark` when the TSC was `tsc`. Lock-free; a load and two stores of its own lines.
    pub fn mark(&self, _masked: &Masked, mark: Mark, tsc: u64) {
        self.slots.mine().ring.mark(mark, tsc);
    }

    /// What `cpu` marked in suspend `number`; `None` where it had no part in it, or has written over it since. Context:
    /// any CPU. Cost: a copy of a kilobyte, on the stack.
    pub fn record(&self, cpu: CpuId, number: u64) -> Option<Record<WORDS>> {
        self.slots.on(cpu).ring.read(number)
    }

    /// How many CPUs have rings.
    pub fn nr(&self) -> usize {
        self.slots.nr()
    }

    /// The number of the last suspend that was begun; 0 where there was none. Context: vCPU 0.
    pub fn last(&self) -> u64 {
        // ORDERING: Relaxed, written by vCPU 0, which is us.
        self.last.load(Relaxed)
    }

    /// The number of the last suspend that is over; 0 where there was none. Context: vCPU 0.
    pub fn last_over(&self) -> u64 {
        // ORDERING: Relaxed, as in `last`.
        self.last_over.load(Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use percpu::hosted;

    use super::*;

    fn cpu(n: usize) -> CpuId {
        CpuId::new(n).expect("tests use small numbers")
    }

    fn marks(trace: &Trace, n: usize, number: u64) -> Option<Vec<Mark>> {
        Some(trace.record(cpu(n), number)?.marks().map(|(mark, _)| mark).collect())
    }

    #[test]
    fn each_cpu_has_its_own_record_of_a_suspend() {
        let trace = Trace::new(3);
        let masked = hosted::masked();
        for number in 1..=9 {
            {
                let _zero = hosted::enter(CpuId::BOOT);
                assert_eq!(trace.begin(&masked), number);
                trace.gather(&masked);
                assert!(!trace.join(&masked), "it has begun it");
                trace.mark(&masked, Mark::Begun, 5);
            }
            let _one = hosted::enter(cpu(1));
            assert!(trace.join(&masked) && !trace.join(&masked));
            trace.mark(&masked, Mark::Parked, 6);
            assert_eq!(marks(&trace, 0, number), Some(vec![Mark::Begun]));
            assert_eq!(marks(&trace, 1, number), Some(vec![Mark::Parked]));
            assert_eq!(marks(&trace, 2, number), None, "it had no part in it");
        }
        assert_eq!(trace.last(), 9);
    }

    #[test]
    fn a_rendezvous_of_no_suspend_is_in_no_record() {
        let trace = Trace::new(1);
        let masked = hosted::masked();
        let _zero = hosted::enter(CpuId::BOOT);
        assert!(!trace.join(&masked), "there was none yet");
        let number = trace.begin(&masked);
        trace.gather(&masked);
        trace.mark(&masked, Mark::Begun, 5);
        trace.end();
        trace.mark(&masked, Mark::FirstTask, 6);
        trace.aside(|| trace.mark(&masked, Mark::Begun, 7));
        trace.mark(&masked, Mark::FirstTask, 8);
        assert_eq!(marks(&trace, 0, number), Some(vec![Mark::Begun, Mark::FirstTask]));
        assert_eq!((trace.last(), trace.last_over()), (number, number));
        assert_eq!(trace.begin(&masked), number + 1);
        assert_eq!((trace.last(), trace.last_over()), (number + 1, number));
    }

    /// One between the request and the suspend's own, and one before its end.
    #[test]
    fn a_rendezvous_within_a_suspend_that_is_not_its_own_is_in_no_record() {
        let trace = Trace::new(2);
        let masked = hosted::masked();
        let one = |mark, hears| {
            let _one = hosted::enter(cpu(1));
            assert_eq!(trace.join(&masked), hears);
            trace.mark(&masked, mark, 6);
        };
        let aside = || {
            trace.aside(|| {
                trace.mark(&masked, Mark::Begun, 7);
                assert!(!trace.join(&masked));
                one(Mark::Parked, false);
                trace.mark(&masked, Mark::AllReleased, 8);
            });
        };
        let _zero = hosted::enter(CpuId::BOOT);
        for number in 1..=3 {
            assert_eq!(trace.begin(&masked), number);
            trace.mark(&masked, Mark::Asked, 1);
            aside();
            trace.mark(&masked, Mark::Quiet, 2);
            trace.gather(&masked);
            trace.mark(&masked, Mark::Begun, 3);
            one(Mark::Arrived, true);
            trace.mark(&masked, Mark::AllReleased, 4);
            aside();
            assert!(!trace.join(&masked), "the last to arrive rings vCPU 0");
            trace.mark(&masked, Mark::AllAlive, 5);
            assert_eq!(trace.last_over(), number - 1);
            trace.end();
            let of_zero = [Mark::Asked, Mark::Quiet, Mark::Begun, Mark::AllReleased, Mark::AllAlive];
            assert_eq!(marks(&trace, 0, number), Some(of_zero.to_vec()));
            assert_eq!(marks(&trace, 1, number), Some(vec![Mark::Arrived]));
        }
    }

    #[test]
    fn a_cpu_that_comes_to_life_by_itself_adds_nothing_to_the_last_suspend() {
        let trace = Trace::new(2);
        let masked = hosted::masked();
        let zero = hosted::enter(CpuId::BOOT);
        let number = trace.begin(&masked);
        trace.gather(&masked);
        drop(zero);
        let _one = hosted::enter(cpu(1));
        trace.join(&masked);
        trace.mark(&masked, Mark::Parked, 6);
        trace.leave(&masked);
        trace.mark(&masked, Mark::Timer, 7);
        assert_eq!(marks(&trace, 1, number), Some(vec![Mark::Parked]));
    }
}

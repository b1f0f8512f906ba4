//! [`Counters`]: what one CPU has seen of events. Statistic only: nothing is decided by them.
//!
//! Written by their own CPU, in cache lines that no other CPU writes; read by anybody. Suspend: *kept*.
#![forbid(unsafe_code)]

use percpu::Masked;
use xen_sys::const_unless_loom;
use xen_sys::primitive::sync::atomic::{AtomicU64, Ordering};

use crate::intent::Intent;

/// A number that only grows.
pub(crate) struct Counter(AtomicU64);

impl Counter {
    const_unless_loom! {
        pub(crate) fn new() -> Counter {
            Counter(AtomicU64::new(0))
        }
    }

    pub(crate) fn get(&self) -> u64 {
        // ORDERING: Relaxed, statistic only.
        self.0.load(Ordering::Relaxed)
    }

    /// One more, where only this CPU writes and only with upcalls masked: a load and a store do.
    pub(crate) fn bump_masked(&self, _masked: &Masked) {
        // ORDERING: Relaxed, statistic only.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// One more, where an upcall on this CPU, or another CPU, may be counting at the same time. How many there were before.
    pub(crate) fn bump(&self) -> u64 {
        // ORDERING: Relaxed, statistic only.
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// One CPU's counters.
pub(crate) struct Counters {
    pub(crate) upcalls: Counter,
    pub(crate) spurious: Counter,
    pub(crate) not_ready: Counter,
    pub(crate) passes: Counter,
    pub(crate) by_intent: [Counter; Intent::COUNT],
    /// All that were handled or handed on; those of devices are what is left of them.
    pub(crate) events: Counter,
    pub(crate) unbound: Counter,
    pub(crate) muted: Counter,
    pub(crate) forwarded: Counter,
    pub(crate) sent: Counter,
    pub(crate) stale_sends: Counter,
    pub(crate) unbound_sends: Counter,
    pub(crate) refused_sends: Counter,
}

impl Counters {
    pub(crate) fn new() -> Counters {
        Counters {
            upcalls: Counter::new(),
            spurious: Counter::new(),
            not_ready: Counter::new(),
            passes: Counter::new(),
            by_intent: core::array::from_fn(|_| Counter::new()),
            events: Counter::new(),
            unbound: Counter::new(),
            muted: Counter::new(),
            forwarded: Counter::new(),
            sent: Counter::new(),
            stale_sends: Counter::new(),
            unbound_sends: Counter::new(),
            refused_sends: Counter::new(),
        }
    }

    pub(crate) fn read_racy(&self) -> CpuCounts {
        let (mut virqs, mut ipis) = (0, 0);
        for intent in Intent::all() {
            let count = self.by_intent[intent.index()].get();
            match intent {
                Intent::Virq(_) => virqs += count,
                Intent::Ipi(_) => ipis += count,
            }
        }
        CpuCounts {
            upcalls: self.upcalls.get(),
            spurious: self.spurious.get(),
            not_ready: self.not_ready.get(),
            passes: self.passes.get(),
            virqs,
            ipis,
            devices: self.events.get().saturating_sub(virqs + ipis + self.unbound.get() + self.forwarded.get()),
            unbound: self.unbound.get(),
            muted: self.muted.get(),
            forwarded: self.forwarded.get(),
            sent: self.sent.get(),
            stale_sends: self.stale_sends.get(),
            unbound_sends: self.unbound_sends.get(),
            refused_sends: self.refused_sends.get(),
        }
    }
}

/// A CPU's counters since boot, read one after the other while they may go on changing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuCounts {
    /// Times the demultiplexer was entered.
    pub upcalls: u64,
    /// Of these, those that found nothing to do.
    pub spurious: u64,
    /// Of these, those that came while this CPU had no bindings in the current life of the domain.
    pub not_ready: u64,
    /// Times the selector was taken.
    pub passes: u64,
    /// Virqs handled.
    pub virqs: u64,
    /// Ipis handled.
    pub ipis: u64,
    /// Events of device ports handled.
    pub devices: u64,
    /// Events on ports that had just been unbound.
    pub unbound: u64,
    /// Times a port was muted until the executor's next turn, for firing too often.
    pub muted: u64,
    /// Events on ports that have moved to another CPU, which was told anew.
    pub forwarded: u64,
    /// Sends, device ports and ipis, that Xen took.
    pub sent: u64,
    /// Sends on a port of an earlier life: not done.
    pub stale_sends: u64,
    /// Ipis to a CPU that has no port in this life yet: not sent.
    pub unbound_sends: u64,
    /// Sends that Xen refused.
    pub refused_sends: u64,
}

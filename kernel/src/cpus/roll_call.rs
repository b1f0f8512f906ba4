//! Proof of life: every vcpu has taken a timer event, and an IPI from another one.
use percpu::{CpuId, PerCpu};
use xen_sys::primitive::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

struct Slot {
    edge: AtomicUsize,
    seen: AtomicUsize,
    done_ns: AtomicU64,
}
pub(crate) struct RollCall {
    slots: PerCpu<Slot>,
    remaining: AtomicUsize,
}
impl RollCall {
    pub(crate) fn new(nr: usize) -> RollCall {
        RollCall {
            slots: PerCpu::new(nr, |_| Slot {
                edge: AtomicUsize::new(0),
                seen: AtomicUsize::new(0),
                done_ns: AtomicU64::new(0),
            }),
            remaining: AtomicUsize::new(nr),
        }
    }
    pub(crate) fn begin(&self) {
        for (_, s) in self.slots.iter() {
            s.edge.store(0, Ordering::Relaxed);
            s.seen.store(0, Ordering::Relaxed);
        }
        self.remaining.store(self.slots.nr(), Ordering::Release);
    }
    pub(crate) fn restored(&self, me: CpuId, send: impl Fn(CpuId)) {
        let nr = self.slots.nr();
        let next = CpuId::new((me.index() + 1) % nr).expect("x");
        for to in [me, next] {
            if self.slots.on(to).edge.fetch_add(1, Ordering::AcqRel) == 1 {
                send(to);
            }
        }
    }
    fn took(&self, me: CpuId, bit: usize, now: impl Fn() -> u64) -> bool {
        let s = self.slots.on(me);
        let before = s.seen.fetch_or(bit, Ordering::Relaxed);
        if before != 3 && before | bit == 3 {
            s.done_ns.store(now(), Ordering::Relaxed);
            return self.remaining.fetch_sub(1, Ordering::AcqRel) == 1;
        }
        false
    }
    pub(crate) fn took_timer(&self, me: CpuId, now: impl Fn() -> u64) -> bool {
        self.took(me, 1, now)
    }
    pub(crate) fn took_ipi(&self, me: CpuId, now: impl Fn() -> u64) -> bool {
        self.took(me, 2, now)
    }
    pub(crate) fn is_complete(&self) -> bool {
        self.remaining.load(Ordering::Acquire) == 0
    }
    pub(crate) fn slowest(&self) -> (CpuId, u64) {
        self.slots.iter().map(|(c, s)| (c, s.done_ns.load(Ordering::Relaxed))).max_by_key(|x| x.1).expect("x")
    }
}

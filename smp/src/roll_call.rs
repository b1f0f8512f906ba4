//! [`RollCall`]: the proof that every vcpu that is called lives: it has taken a timer event, and an IPI from another vcpu (a single
//! vcpu: from itself). Boot and resume end with it. One that is
//! down is not called, and one that comes up later does not stand in line: it counts as one that has shown everything.
//!
//! The vcpus come back in any order and all at once, and nobody may send to one that has no port yet. So they stand in
//! line as they come: one word says how many have come and who the last two were, and each new one sends to the one
//! before it, which must have its port by now. The last one to come is left over: the one before it, woken by it, sends
//! back. That makes one IPI to each vcpu, one exchange on a shared word each, and nobody waits.
//!
//! | bits of the word | meaning |
//! |---|---|
//! | 0..=10 | how many have come, 0 to 1024 |
//! | 11..=20 | who came last |
//! | 21..=30 | who came before that |
//!
//! Who writes: the line, each CPU once a round; a CPU's slot, that CPU; all of it vCPU 0 between rounds, while nobody
//! else runs. Context: the CPU's own upcalls and its bring-up or restore. Lock-free. Suspend: *rebuilt*
//! ([`RollCall::begin`]).
//!
//! Turned down: a ring of senders, CPU n to CPU n + 1, in which the second of each pair to come sends. Where the target
//! comes second that is an IPI to itself, and proves less: some port works, not that another vcpu can reach it.
//!
//! Weakening any ordering below fails in `tests/loom_roll_call.rs`.
#![forbid(unsafe_code)]

use core::fmt;

use crossbeam_utils::CachePadded;
use percpu::{CpuId, CpuSet, PerCpu, Quiesced};
use xen_sys::primitive::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use xen_sys::primitive::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize};

/// The line, as a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Line {
    come: u32,
    last: CpuId,
    before: CpuId,
}

impl Line {
    const EMPTY: Line = Line { come: 0, last: CpuId::BOOT, before: CpuId::BOOT };

    fn joined_by(self, cpu: CpuId) -> Line {
        Line { come: self.come + 1, last: cpu, before: self.last }
    }

    fn encode(self) -> u32 {
        self.come | self.last.vcpu() << 11 | self.before.vcpu() << 21
    }

    fn decode(word: u32) -> Line {
        let cpu = |bits: u32| CpuId::from_vcpu(bits & 0x3ff).expect("ten bits are below CpuId::MAX");
        Line { come: word & 0x7ff, last: cpu(word >> 11), before: cpu(word >> 21) }
    }
}

/// What a CPU has shown in this round. Written by that CPU alone.
struct Slot {
    /// A set of the bits below. A CPU that has not come shows nothing.
    shown: AtomicU8,
    /// When it had shown everything.
    done_ns: AtomicU64,
}

impl Slot {
    const CAME: u8 = 1;
    const TIMER: u8 = 2;
    const IPI: u8 = 4;
    const ALL: u8 = Self::CAME | Self::TIMER | Self::IPI;
}

/// What an event changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "whoever waits for the roll call is to be woken when it is complete"]
pub enum Progress {
    /// This event was needed no more, or not yet.
    Going,
    /// It was this CPU's first of its kind; somebody is still missing.
    Shown,
    /// It was the last thing missing. Said once in a round.
    Complete,
}

/// The roll call of all CPUs.
pub struct RollCall {
    line: CachePadded<AtomicU32>,
    /// CPUs that have not shown everything.
    missing: CachePadded<AtomicUsize>,
    /// How many CPUs are called in this round. Written by vCPU 0 between rounds.
    called: AtomicUsize,
    slots: PerCpu<Slot>,
}

impl RollCall {
    /// The first round, in which all of the first `nr` CPUs are called, none of which runs yet but vCPU 0.
    pub fn new(nr: usize) -> RollCall {
        RollCall {
            line: CachePadded::new(AtomicU32::new(Line::EMPTY.encode())),
            missing: CachePadded::new(AtomicUsize::new(nr)),
            called: AtomicUsize::new(nr),
            slots: PerCpu::new(nr, |_| Slot { shown: AtomicU8::new(0), done_ns: AtomicU64::new(0) }),
        }
    }

    /// Begins the next round, of the CPUs `called`, whether or not the last one was complete: an IPI of it that still lies in an inbox is
    /// taken out before its CPU [comes](RollCall::restored), and counts for nothing. Context: vCPU 0, before it
    /// releases the others.
    pub fn begin(&self, _others: &Quiesced, called: impl Fn(CpuId) -> bool) {
        let mut nr = 0;
        // ORDERING: Relaxed, all of it: nobody else runs, and the release of the others passes it on.
        for (cpu, slot) in self.slots.iter() {
            let is_called = called(cpu);
            nr += usize::from(is_called);
            slot.shown.store(if is_called { 0 } else { Slot::ALL }, Relaxed);
            slot.done_ns.store(0, Relaxed);
        }
        self.missing.store(nr, Relaxed);
        self.called.store(nr, Relaxed);
        self.line.store(Line::EMPTY.encode(), Relaxed);
    }

    /// `me`, which is this CPU, can take IPIs and timer events. Sends with `send` to a CPU that can too. One that was not
    /// called in this round does nothing.
    ///
    /// Context: once a round, upcalls masked, after it has published its IPI port *and then* looked once into its
    /// inbox: what is sent to it from now on must come as an event, and nothing of the last round may come after this.
    pub fn restored(&self, me: CpuId, send: impl FnOnce(CpuId)) {
        let shown = &self.slots.on(me).shown;
        // ORDERING: Relaxed, our own slot.
        if shown.load(Relaxed) == Slot::ALL {
            return;
        }
        // ORDERING: Relaxed, our own slot.
        shown.store(Slot::CAME, Relaxed);
        // ORDERING: Relaxed, a guess that the exchange checks.
        let mut seen = self.line.load(Relaxed);
        let line = loop {
            let line = Line::decode(seen).joined_by(me);
            // ORDERING: AcqRel. Release, pairs with the acquire half of the next one to come: it sees our port.
            //   Acquire: we see the port of the one before us. A failed exchange is a guess.
            match self.line.compare_exchange_weak(seen, line.encode(), AcqRel, Relaxed) {
                Ok(_) => break line,
                Err(now) => seen = now,
            }
        };
        if line.come > 1 {
            send(line.before);
        } else if self.nr_called() == 1 {
            send(me);
        }
    }

    /// This CPU, `me`, has taken a timer event. Context: upcall. Cost: one load of its own line, once it has shown
    /// everything.
    pub fn took_timer(&self, me: CpuId, now_ns: impl FnOnce() -> u64) -> Progress {
        self.took(me, Slot::TIMER, now_ns)
    }

    /// This CPU, `me`, has taken the IPI of the roll call, and sees what its sender did before, as
    /// [`Mail`](crate::Mail) has it. Context: upcall.
    pub fn took_ipi(&self, me: CpuId, now_ns: impl FnOnce() -> u64, send: impl FnOnce(CpuId)) -> Progress {
        // ORDERING: Relaxed: the post that brought us here passes on what its sender did before. If that was the last
        //   to come, we see a full line, and its port.
        let line = Line::decode(self.line.load(Relaxed));
        let all_came = usize::try_from(line.come) == Ok(self.nr_called());
        if all_came && line.before == me && line.last != me && self.lacks_ipi(me) {
            send(line.last);
        }
        self.took(me, Slot::IPI, now_ns)
    }

    fn nr_called(&self) -> usize {
        // ORDERING: Relaxed, changes only while nobody else runs.
        self.called.load(Relaxed)
    }

    fn lacks_ipi(&self, me: CpuId) -> bool {
        // ORDERING: Relaxed, our own slot.
        let shown = self.slots.on(me).shown.load(Relaxed);
        shown & Slot::CAME != 0 && shown & Slot::IPI == 0
    }

    fn took(&self, me: CpuId, what: u8, now_ns: impl FnOnce() -> u64) -> Progress {
        let slot = self.slots.on(me);
        // ORDERING: Relaxed, our own slot; upcalls on one CPU do not nest.
        let before = slot.shown.load(Relaxed);
        let after = before | what;
        if before & Slot::CAME == 0 || after == before {
            return Progress::Going;
        }
        slot.shown.store(after, Relaxed);
        if after != Slot::ALL {
            return Progress::Shown;
        }
        // ORDERING: Relaxed, published by the count.
        slot.done_ns.store(now_ns(), Relaxed);
        // ORDERING: Release, pairs with the Acquire in `is_complete`: whoever sees the end sees all times.
        if self.missing.fetch_sub(1, Release) == 1 { Progress::Complete } else { Progress::Shown }
    }

    /// Whether everybody has shown everything in this round. If so, all that they did before is visible.
    pub fn is_complete(&self) -> bool {
        // ORDERING: Acquire, pairs with the release half in `took`.
        self.missing.load(Acquire) == 0
    }

    /// Who was the last, and when. Only of a complete round.
    pub fn slowest(&self) -> (CpuId, u64) {
        // ORDERING: Relaxed, visible since `is_complete`.
        let times = self.slots.iter().map(|(cpu, slot)| (cpu, slot.done_ns.load(Relaxed)));
        times.max_by_key(|(_, ns)| *ns).unwrap_or((CpuId::BOOT, 0))
    }

    /// Who has not shown everything yet; may be stale where the round is still going.
    pub fn missing_racy(&self) -> CpuSet {
        // ORDERING: Relaxed, to be printed only.
        let missing = self.slots.iter().filter(|(_, slot)| slot.shown.load(Relaxed) != Slot::ALL);
        missing.map(|(cpu, _)| cpu).collect()
    }
}

impl fmt::Debug for RollCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RollCall(missing {})", self.missing_racy())
    }
}

#[cfg(all(test, not(loom)))]
#[path = "roll_call_tests.rs"]
mod tests;

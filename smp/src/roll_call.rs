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
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;

    use percpu::{Masked, hosted};

    use super::*;
    use crate::order::EachCpu;
    use crate::suspend::{CpuSteps, restore_cpu};
    use crate::tests::{Noted, kernel, quiesced};
    use crate::{Kind, Mail, Outcome};

    fn cpu(n: usize) -> CpuId {
        CpuId::new(n).expect("tests use small numbers")
    }

    /// Lets the CPUs come in `order`, delivers IPIs as they were sent, and returns them as (from, to).
    fn round(roll_call: &RollCall, order: &[usize]) -> Vec<(usize, usize)> {
        let sent = RefCell::new(VecDeque::new());
        let mut came = CpuSet::empty();
        let mut all = Vec::new();
        let mut completed = 0;
        for n in order {
            roll_call.restored(cpu(*n), |to| sent.borrow_mut().push_back((*n, to)));
            came.insert(cpu(*n));
            completed += usize::from(roll_call.took_timer(cpu(*n), || 10 + *n as u64) == Progress::Complete);
        }
        loop {
            let Some((from, to)) = sent.borrow_mut().pop_front() else { break };
            assert!(came.contains(to), "sent to a CPU without a port");
            all.push((from, to.index()));
            let me = to.index();
            let progress = roll_call.took_ipi(to, || 100 + me as u64, |to| sent.borrow_mut().push_back((me, to)));
            completed += usize::from(progress == Progress::Complete);
        }
        assert_eq!(completed, 1, "completeness is said once");
        all
    }

    fn check(roll_call: &RollCall, order: &[usize]) {
        let mut sent = round(roll_call, order);
        assert!(roll_call.is_complete());
        assert!(roll_call.missing_racy().is_empty());
        if order.len() > 1 {
            assert!(sent.iter().all(|(from, to)| from != to), "an IPI to itself: {sent:?}");
        }
        sent.sort_by_key(|(_, to)| *to);
        assert!(sent.iter().map(|(_, to)| *to).eq(0..order.len()), "one IPI to each: {sent:?}");
        let last = order.len() - 1;
        assert_eq!(roll_call.slowest(), (cpu(last), 100 + last as u64));
    }

    #[test]
    fn each_gets_one_ipi_from_another() {
        check(&RollCall::new(2), &[0, 1]);
        check(&RollCall::new(2), &[1, 0]);
        check(&RollCall::new(4), &[2, 0, 3, 1]);
        let backwards: Vec<usize> = (0..CpuId::MAX).rev().collect();
        check(&RollCall::new(CpuId::MAX), &backwards);
    }

    #[test]
    fn one_alone_sends_to_itself() {
        let roll_call = RollCall::new(1);
        assert_eq!(round(&roll_call, &[0]), [(0, 0)]);
        assert!(roll_call.is_complete());
    }

    #[test]
    fn events_before_a_cpu_has_come_count_for_nothing() {
        let roll_call = RollCall::new(1);
        assert_eq!(roll_call.took_timer(cpu(0), || 1), Progress::Going);
        assert_eq!(roll_call.took_ipi(cpu(0), || 1, |_| panic!("nobody is there")), Progress::Going);
        assert!(!roll_call.is_complete());
        assert_eq!(round(&roll_call, &[0]).len(), 1);
    }

    #[test]
    fn a_round_can_be_begun_again_at_any_point() {
        let roll_call = RollCall::new(3);
        roll_call.restored(cpu(1), |_| ());
        let _ = roll_call.took_timer(cpu(1), || 1);
        quiesced(|others| roll_call.begin(others, |_| true));
        assert_eq!(roll_call.missing_racy(), CpuSet::first(3));
        check(&roll_call, &[0, 2, 1]);
        quiesced(|others| roll_call.begin(others, |_| true));
        check(&roll_call, &[1, 2, 0]);
    }

    #[test]
    fn who_is_not_called_is_not_waited_for_and_does_not_stand_in_line() {
        let roll_call = RollCall::new(4);
        quiesced(|others| roll_call.begin(others, |cpu| cpu.index() < 2));
        assert_eq!(roll_call.missing_racy(), CpuSet::first(2));
        let come_late = || roll_call.restored(cpu(3), |_| panic!("it is in nobody's line"));
        come_late();
        assert_eq!(roll_call.took_timer(cpu(3), || panic!("of no interest")), Progress::Going);
        check(&roll_call, &[1, 0]);
        come_late();
        assert_eq!(roll_call.took_ipi(cpu(3), || panic!("of no interest"), |_| panic!("or so")), Progress::Going);
        quiesced(|others| roll_call.begin(others, |cpu| cpu == CpuId::BOOT));
        assert_eq!(round(&roll_call, &[0]), [(0, 0)], "alone among many");
        assert_eq!(roll_call.slowest().0, CpuId::BOOT);
    }

    /// CPUs whose events come when the test says so.
    struct World {
        roll_call: RollCall,
        mail: Mail<Noted>,
        completed: Cell<usize>,
    }

    impl World {
        fn count(&self, progress: Progress) {
            self.completed.set(self.completed.get() + usize::from(progress == Progress::Complete));
        }

        fn post(&self, to: CpuId) {
            self.mail.post(to, Kind::Alive);
        }

        fn serve(&self, masked: &Masked) {
            let me = percpu::current();
            self.mail.serve(masked);
            let kinds = std::mem::take(&mut *self.mail.delivery().kinds.lock().expect("no test panics in there"));
            if kinds.iter().any(|kinds| kinds.contains(Kind::Alive)) {
                self.count(self.roll_call.took_ipi(me, || 1, |to| self.post(to)));
            }
        }

        /// Released with `outcome`, then whatever upcall is due.
        fn come_back(&self, n: usize, outcome: Outcome) {
            let _on = hosted::enter(cpu(n));
            assert_eq!(restore_cpu(self, outcome, &hosted::masked()), Ok(()));
            self.count(self.roll_call.took_timer(cpu(n), || 1));
            self.serve(&hosted::masked());
        }

        fn upcall(&self, n: usize) {
            let _on = hosted::enter(cpu(n));
            self.serve(&hosted::masked());
        }
    }

    impl CpuSteps for World {
        type Error = ();

        fn each_cpu(&self, step: EachCpu, masked: &Masked) -> Result<(), ()> {
            match step {
                EachCpu::Bind => {}
                EachCpu::ServeInbox => self.serve(masked),
                EachCpu::JoinRollCall => self.roll_call.restored(percpu::current(), |to| self.post(to)),
            }
            Ok(())
        }
    }

    /// The answer to the last one of a round lies in its inbox while it is parked for the next suspend. Taken for the
    /// next round's proof, it would leave that round's last one without an answer.
    #[test]
    fn mail_of_the_last_round_is_no_proof_in_the_next() {
        for outcome in [Outcome::Continued, Outcome::Resumed] {
            let (mail, on) = kernel(2);
            drop(on);
            let world = World { roll_call: RollCall::new(2), mail, completed: Cell::new(0) };
            world.come_back(0, Outcome::Resumed);
            world.come_back(1, Outcome::Resumed);
            world.upcall(0);
            assert_eq!(world.completed.get(), 0, "CPU 1 has not seen its answer");
            quiesced(|others| world.roll_call.begin(others, |_| true));
            world.come_back(1, outcome);
            world.come_back(0, outcome);
            [1, 0].into_iter().for_each(|n| world.upcall(n));
            assert!(world.roll_call.is_complete(), "missing: {}", world.roll_call.missing_racy());
            assert_eq!(world.completed.get(), 1);
        }
    }

    #[test]
    fn later_events_cost_nothing_and_change_nothing() {
        let roll_call = RollCall::new(2);
        check(&roll_call, &[0, 1]);
        assert_eq!(roll_call.took_timer(cpu(0), || panic!("its time stands")), Progress::Going);
        assert_eq!(roll_call.took_ipi(cpu(0), || panic!("its time stands"), |_| panic!("sent again")), Progress::Going);
    }

    #[test]
    fn line_holds_the_largest_cpu() {
        let line = Line { come: 1024, last: cpu(1023), before: cpu(1022) };
        assert_eq!(Line::decode(line.encode()), line);
    }
}

//! Rounds of the roll call, one CPU's proofs after the other's.

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

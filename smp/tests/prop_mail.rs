//! Inboxes and call nodes agree with a naive model: a set of kinds and a queue of calls for each CPU, and a note of who
//! was rung. What goes to many CPUs is what goes to each of them, one after the other.
#![cfg(not(loom))]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Mutex;

use percpu::{CpuId, CpuSet, Masked, current, hosted};
use proptest::prelude::*;
use smp::{CallNode, Delivery, Kind, Kinds, Mail, Pending, Relax};

const CPUS: usize = 3;
const NODES: usize = 4;

static POOL: [CallNode; NODES] = [const { CallNode::new() }; NODES];
/// The pool is one for all tests of this process.
static POOL_IN_USE: Mutex<()> = Mutex::new(());

#[derive(Clone, Copy, Debug)]
enum Step {
    Post(usize, Kind),
    /// CPUs, as bits.
    PostAll(usize, Kind),
    /// From which CPU, on which CPUs.
    CallAll(usize, usize),
    /// CPU, node.
    Call(usize, usize),
    /// What waits for this node goes away.
    Drop(usize),
    /// What waits for this node sees the end, if there is one.
    Finish(usize),
    Serve(usize),
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Reschedule), Just(Kind::Rendezvous), Just(Kind::Alive)]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..CPUS, kind()).prop_map(|(cpu, kind)| Step::Post(cpu, kind)),
        (0..1_usize << CPUS, kind()).prop_map(|(cpus, kind)| Step::PostAll(cpus, kind)),
        (0..CPUS, 0..1_usize << CPUS).prop_map(|(from, cpus)| Step::CallAll(from, cpus)),
        (0..CPUS, 0..NODES).prop_map(|(cpu, node)| Step::Call(cpu, node)),
        (0..NODES).prop_map(Step::Drop),
        (0..NODES).prop_map(Step::Finish),
        (0..CPUS).prop_map(Step::Serve),
    ];
    prop::collection::vec(step, 0..if cfg!(miri) { 20 } else { 100 })
}

/// What happened, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Happened {
    Rang(usize),
    Handled(Kinds),
    Ran(usize),
    /// A call on many, on this one.
    RanOn(usize),
}

std::thread_local! {
    static LOG: RefCell<Vec<Happened>> = const { RefCell::new(Vec::new()) };
}

fn log(what: Happened) {
    LOG.with_borrow_mut(|log| log.push(what));
}

fn call(_masked: &Masked, argument: usize) {
    log(Happened::Ran(argument));
}

struct Logged;

impl Delivery for Logged {
    fn ring(&self, cpu: CpuId) {
        log(Happened::Rang(cpu.index()));
    }

    fn handle(&self, _masked: &Masked, kinds: Kinds) {
        log(Happened::Handled(kinds));
    }
}

struct NeverWaits;

impl Relax for NeverWaits {
    fn spin(&self) {
        panic!("it is over");
    }

    fn give_up_processor(&self) {
        panic!("it is over");
    }
}

/// What the other CPUs do while one waits: each serves its inbox, once.
struct OthersServe<'a> {
    mail: &'a Mail<Logged>,
    served: Cell<bool>,
}

impl Relax for OthersServe<'_> {
    fn spin(&self) {
        assert!(!self.served.replace(true), "all have served, and it is not over");
        for cpu in CpuId::first(CPUS).filter(|cpu| *cpu != current()) {
            let _on = hosted::enter(cpu);
            self.mail.serve(&hosted::masked());
        }
    }

    fn give_up_processor(&self) {
        self.spin();
    }
}

/// A call that waits.
enum Call {
    Of { node: usize, argument: usize },
    OnMany,
}

#[derive(Default)]
struct Model {
    kinds: [Vec<Kind>; CPUS],
    calls: [VecDeque<Call>; CPUS],
    /// Nodes that are in a queue.
    queued: [bool; NODES],
    log: Vec<Happened>,
}

impl Model {
    fn ring_if_empty(&mut self, cpu: usize) {
        if self.kinds[cpu].is_empty() && self.calls[cpu].is_empty() {
            self.log.push(Happened::Rang(cpu));
        }
    }

    fn serve(&mut self, cpu: usize) {
        let kinds = std::mem::take(&mut self.kinds[cpu]);
        if !kinds.is_empty() {
            self.log.push(Happened::Handled(kinds.into_iter().collect()));
        }
        for call in self.calls[cpu].drain(..) {
            self.log.push(match call {
                Call::Of { node, argument } => {
                    self.queued[node] = false;
                    Happened::Ran(argument)
                }
                Call::OnMany => Happened::RanOn(cpu),
            });
        }
    }
}

fn set(bits: usize) -> CpuSet {
    CpuId::first(CPUS).filter(|cpu| bits & 1 << cpu.index() != 0).collect()
}

fn check(steps: &[Step]) -> Result<(), TestCaseError> {
    let _pool = POOL_IN_USE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    LOG.take();
    let mail = Mail::new(CPUS, Logged);
    let mut model = Model::default();
    let mut waits: [Option<Pending>; NODES] = Default::default();
    let mut nodes: [CallNode; CPUS - 1] = Default::default();
    let on = |n| hosted::enter(CpuId::new(n).expect("small"));
    let _boot = on(0);
    let last = [Step::Serve(0), Step::Serve(1), Step::Serve(2)];
    for (argument, step) in steps.iter().chain(&last).enumerate() {
        match *step {
            Step::Post(cpu, kind) => {
                model.ring_if_empty(cpu);
                model.kinds[cpu].push(kind);
                mail.post(CpuId::new(cpu).expect("small"), kind);
            }
            Step::PostAll(cpus, kind) => {
                for cpu in set(cpus).iter().map(CpuId::index) {
                    model.ring_if_empty(cpu);
                    model.kinds[cpu].push(kind);
                }
                mail.post_all(&set(cpus), kind);
            }
            Step::CallAll(from, cpus) => {
                let _on = on(from);
                let others = set(cpus & !(1 << from));
                for cpu in others.iter().map(CpuId::index) {
                    model.ring_if_empty(cpu);
                    model.calls[cpu].push_back(Call::OnMany);
                }
                if cpus & 1 << from != 0 {
                    model.log.push(Happened::RanOn(from));
                }
                if !others.is_empty() {
                    (0..CPUS).filter(|cpu| *cpu != from).for_each(|cpu| model.serve(cpu));
                }
                let relax = OthersServe { mail: &mail, served: Cell::new(false) };
                let down = mail.run_on_many(&set(cpus), &mut nodes, &relax, &|_: &Masked| {
                    log(Happened::RanOn(current().index()));
                });
                prop_assert_eq!(down, 0);
            }
            Step::Call(cpu, node) => {
                let free = waits[node].is_none() && !model.queued[node];
                match mail.call(CpuId::new(cpu).expect("small"), &POOL[node], call, argument) {
                    Ok(pending) => {
                        prop_assert!(free, "a node was claimed twice");
                        model.ring_if_empty(cpu);
                        model.calls[cpu].push_back(Call::Of { node, argument });
                        model.queued[node] = true;
                        waits[node] = Some(pending);
                    }
                    Err(_busy) => prop_assert!(!free, "an idle node is busy"),
                }
            }
            Step::Drop(node) => waits[node] = None,
            Step::Finish(node) => {
                if !model.queued[node]
                    && let Some(pending) = waits[node].take()
                {
                    pending.wait(&NeverWaits);
                }
            }
            Step::Serve(cpu) => {
                let _on = on(cpu);
                mail.serve(&hosted::masked());
                model.serve(cpu);
            }
        }
        prop_assert_eq!(LOG.with_borrow(Clone::clone), model.log.clone());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 8 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn mail_is_a_set_and_a_queue(steps in steps()) {
        check(&steps)?;
    }
}

//! Random histories of binding, sending, upcalls, suspends and restores, against a model that knows only sets.
#![cfg(not(loom))]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use evtchn::hosted::{self, Channel, Fake, bring_up, cpu, masked, nr, quiesced};
use evtchn::{
    AbiKind, Action, Binding, DeviceError, EndOfEvent, Events, Handlers, Intent, Ipi, Port, Ports, SendOutcome, Upcall,
    Virq,
};
use percpu::Masked;
use proptest::prelude::*;

const CPUS: usize = 3;
const ACTIONS: usize = 3;

/// What a handler run is of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum What {
    Intent(Intent),
    Action(usize),
}

const TIMER: What = What::Intent(Intent::Virq(Virq::TIMER));
const GLOBAL: What = What::Intent(Intent::Virq(hosted::GLOBAL));
const CALL: What = What::Intent(Intent::Ipi(Ipi::Call));

thread_local! {
    static SEEN: RefCell<Vec<(usize, What)>> = const { RefCell::new(Vec::new()) };
}

fn see(what: What) {
    SEEN.with_borrow_mut(|seen| seen.push((percpu::current().index(), what)));
}

fn on_device(_: &Masked, action: &Action) {
    see(What::Action(action.context()));
}

fn handlers() -> Handlers {
    Handlers::new()
        .virq(Virq::TIMER, |_| see(TIMER))
        .virq(hosted::GLOBAL, |_| see(GLOBAL))
        .ipi(Ipi::Call, |_| see(CALL))
}

#[derive(Clone, Debug)]
enum Op {
    BringUp(usize),
    /// An event on the port at this place among those that exist.
    Raise(usize),
    Ipi(usize, usize),
    /// From where, to which CPUs: bits.
    Ipis(usize, usize),
    Upcall(usize),
    NewDevice,
    Bind(usize, usize, usize),
    Unbind(usize),
    Move(usize, usize),
    Send(usize),
    Suspend(bool),
}

fn op() -> impl Strategy<Value = Op> {
    let (cpu, place, action) = (0..CPUS, 0..32_usize, 0..ACTIONS);
    prop_oneof![
        3 => cpu.clone().prop_map(Op::BringUp),
        8 => place.clone().prop_map(Op::Raise),
        3 => (cpu.clone(), cpu.clone()).prop_map(|(from, to)| Op::Ipi(from, to)),
        2 => (cpu.clone(), 0..1_usize << CPUS).prop_map(|(from, to)| Op::Ipis(from, to)),
        6 => cpu.clone().prop_map(Op::Upcall),
        2 => Just(Op::NewDevice),
        4 => (place, cpu, action.clone()).prop_map(|(place, cpu, action)| Op::Bind(place, cpu, action)),
        2 => action.clone().prop_map(Op::Unbind),
        3 => (action.clone(), 0..CPUS).prop_map(|(action, cpu)| Op::Move(action, cpu)),
        2 => action.prop_map(Op::Send),
        1 => any::<bool>().prop_map(Op::Suspend),
    ]
}

/// The model: who has which port, and which ports have an event waiting.
#[derive(Default)]
struct Model {
    ports: BTreeMap<u32, Option<(usize, What)>>,
    waiting: BTreeSet<u32>,
    /// FIFO ABI: ports that stand in a CPU's queue.
    queued: BTreeMap<u32, usize>,
    ready: BTreeSet<usize>,
    /// Ports of actions, also of earlier lives.
    ever: BTreeMap<usize, Port>,
}

impl Model {
    /// What the next upcall on `cpu` handles.
    fn due(&self, cpu: usize) -> BTreeMap<u32, What> {
        let owned = |port: &u32| match self.ports.get(port) {
            Some(Some((owner, what))) if *owner == cpu => Some((*port, *what)),
            _ => None,
        };
        self.waiting.iter().filter_map(owned).collect()
    }

    fn of_action(&self, action: usize) -> Option<u32> {
        let is =
            |(_, owner): &(&u32, &Option<(usize, What)>)| owner.is_some_and(|(_, what)| what == What::Action(action));
        self.ports.iter().find(is).map(|(port, _)| *port)
    }

    fn place(&self, place: usize) -> Option<u32> {
        self.ports.keys().nth(place % self.ports.len().max(1)).copied()
    }
}

struct Run {
    abi: AbiKind,
    xen: Fake,
    events: Rc<Events<Fake>>,
    actions: [Arc<Action>; ACTIONS],
    bindings: [Option<Binding>; ACTIONS],
    model: Model,
}

impl Run {
    fn new(abi: AbiKind) -> Run {
        let xen = Fake::new(CPUS);
        let events = Rc::new(hosted::boot(&xen, abi, handlers()));
        Run {
            abi,
            xen,
            events,
            actions: [0, 1, 2].map(|a| Action::new(EndOfEvent::AtOnce, a, on_device)),
            bindings: [const { None }; ACTIONS],
            model: Model::default(),
        }
    }

    fn bring_up(&mut self, n: usize) {
        // Once in a life, as the kernel does it.
        if !self.model.ready.insert(n) {
            return;
        }
        let _on = percpu::hosted::enter(cpu(n));
        self.xen.place(cpu(n));
        bring_up(&self.events, &self.xen).expect("the fake has ports enough");
        let global = (n == 0).then_some((Channel::Virq(hosted::GLOBAL, cpu(n)), GLOBAL));
        let own = [(Channel::Virq(Virq::TIMER, cpu(n)), TIMER), (Channel::Ipi(cpu(n)), CALL)];
        for (channel, what) in own.into_iter().chain(global) {
            let port = self.xen.find(channel).expect("just bound");
            self.model.ports.insert(port, Some((n, what)));
        }
    }

    fn bind(&mut self, place: usize, n: usize, a: usize) {
        let Some(port) = self.model.place(place) else { return };
        let bound = self.events.bind_device(nr(port), cpu(n), &self.actions[a]);
        let nr = nr(port);
        let expected = match (self.model.ports[&port], self.model.of_action(a)) {
            _ if !self.model.ready.contains(&n) => Err(DeviceError::CpuNotReady { nr, cpu: cpu(n) }),
            _ if !self.model.ready.contains(&0) => Err(DeviceError::CpuNotReady { nr, cpu: cpu(0) }),
            (Some((owner, What::Intent(_))), _) if owner == n || owner == 0 => Err(DeviceError::PortTaken { nr }),
            (_, Some(_)) => Err(DeviceError::ActionTaken { nr, has: self.model.ever[&a] }),
            (Some((_, What::Action(_))), _) => Err(DeviceError::PortTaken { nr }),
            (Some(_), _) => Err(DeviceError::Route { nr, cpu: cpu(n), errno: xen_sys::Errno::EINVAL }),
            (None, None) => {
                self.model.ports.insert(port, Some((n, What::Action(a))));
                let port = Port { nr, incarnation: self.events.incarnation() };
                self.model.ever.insert(a, port);
                Ok(port)
            }
        };
        assert_eq!(bound.as_ref().map(Binding::port).map_err(|error| *error), expected);
        if let Ok(binding) = bound {
            self.bindings[a] = Some(binding);
        }
    }

    fn unbind(&mut self, a: usize) {
        let Some(binding) = self.bindings[a].take() else { return };
        let port = self.model.of_action(a);
        let events = self.events.clone();
        let unbinding = events.unbind_device(binding);
        let Some(port) = port else {
            assert_eq!(unbinding.err(), Some(DeviceError::NotBound));
            return;
        };
        let mut unbinding = unbinding.expect("bound");
        self.model.ports.insert(port, None);
        self.until_dequeued(port, || unbinding.is_over());
    }

    /// To CPU `n`.
    fn relocate(&mut self, a: usize, n: usize) {
        let Some(mut binding) = self.bindings[a].take() else { return };
        let port = self.model.of_action(a);
        let events = self.events.clone();
        let moving = events.move_device(&mut binding, cpu(n));
        match port {
            None => assert_eq!(moving.err(), Some(DeviceError::NotBound)),
            Some(port) if !self.model.ready.contains(&n) => {
                assert_eq!(moving.err(), Some(DeviceError::CpuNotReady { nr: nr(port), cpu: cpu(n) }));
            }
            Some(port) => {
                let mut moving = moving.expect("bound, and up");
                let from = self.model.ports[&port].expect("bound").0;
                if from != n {
                    self.model.ports.insert(port, None);
                }
                self.until_dequeued(port, || moving.is_over() == Ok(true));
                drop(moving);
                self.model.ports.insert(port, Some((n, What::Action(a))));
            }
        }
        self.bindings[a] = Some(binding);
    }

    /// What unbinding and moving wait for: that the port is in no queue. `port` is nobody's meanwhile.
    fn until_dequeued(&mut self, port: u32, mut is_over: impl FnMut() -> bool) {
        let queued = self.model.queued.get(&port).copied().filter(|_| self.model.ports[&port].is_none());
        assert_eq!(is_over(), queued.is_none());
        if let Some(cpu) = queued {
            self.upcall(cpu);
            assert!(is_over());
        }
    }

    fn upcall(&mut self, n: usize) {
        let _on = percpu::hosted::enter(cpu(n));
        let due = self.model.due(n);
        if !due.is_empty() {
            assert!(self.xen.upcall_due(cpu(n)), "Xen does not enter cpu {n}, and {due:?} wait");
        }
        // A turn of the executor for each upcall, so that no port fires too often in one.
        self.events.end_turn(self.xen.flags(cpu(n)));
        let forwarded = self.events.counts_racy(cpu(n)).forwarded;
        let upcall = self.events.demux(&masked(), self.xen.flags(cpu(n)));
        let mut seen = SEEN.take();
        seen.sort_unstable();
        let mut expected: Vec<_> = due.values().map(|what| (n, *what)).collect();
        expected.sort_unstable();
        assert_eq!(seen, expected);
        self.model.waiting.retain(|port| !due.contains_key(port));
        if self.model.ready.contains(&n) {
            self.model.queued.retain(|_, cpu| *cpu != n);
        }
        // What it has found of ports that were moved away is as good as not taken.
        let forwarded = self.events.counts_racy(cpu(n)).forwarded - forwarded;
        let taken = u32::try_from(due.len()).expect("few") + u32::try_from(forwarded).expect("few");
        let expected = match (self.model.ready.contains(&n), taken) {
            (false, _) => Upcall::NotReady,
            (true, 0) => Upcall::Spurious,
            (true, events) => Upcall::Handled(events),
        };
        assert_eq!(upcall, expected);
        assert!(!self.xen.upcall_due(cpu(n)));
    }

    fn suspend(&mut self, resumed: bool) {
        self.events.detach(&quiesced());
        if !resumed {
            hosted::attach(&self.events, &self.xen, Ports::Kept);
            return;
        }
        self.xen.restore();
        hosted::attach(&self.events, &self.xen, Ports::Gone);
        self.model = Model { ever: std::mem::take(&mut self.model.ever), ..Model::default() };
    }

    fn step(&mut self, op: &Op) {
        // Who binds, and who looks.
        let _on = percpu::hosted::enter(cpu(0));
        match *op {
            Op::BringUp(n) => self.bring_up(n),
            Op::Raise(place) => {
                if let Some(port) = self.model.place(place) {
                    self.xen.raise(port);
                    self.model.waiting.insert(port);
                }
            }
            Op::Ipi(from, to) => {
                let _on = percpu::hosted::enter(cpu(from));
                let outcome = self.events.send_ipi(cpu(to), Ipi::Call);
                if self.model.ready.contains(&to) {
                    assert_eq!(outcome, SendOutcome::Sent);
                    self.model.waiting.insert(self.xen.find(Channel::Ipi(cpu(to))).expect("bound"));
                } else {
                    assert_eq!(outcome, SendOutcome::Unbound);
                }
            }
            Op::Ipis(from, to) => {
                let _on = percpu::hosted::enter(cpu(from));
                let targets: Vec<_> = (0..CPUS).filter(|n| to & 1 << n != 0).collect();
                let counts = || {
                    let counts = self.events.counts_racy(cpu(from));
                    (counts.sent, counts.unbound_sends)
                };
                let (sent, unbound) = counts();
                self.events.send_ipis(&targets.iter().map(|n| cpu(*n)).collect::<Vec<_>>(), Ipi::Call);
                let ready: Vec<_> = targets.iter().filter(|n| self.model.ready.contains(n)).collect();
                for n in &ready {
                    self.model.waiting.insert(self.xen.find(Channel::Ipi(cpu(**n))).expect("bound"));
                }
                let lost = (targets.len() - ready.len()) as u64;
                assert_eq!(counts(), (sent + ready.len() as u64, unbound + lost));
            }
            Op::Upcall(n) => self.upcall(n),
            Op::NewDevice => {
                let port = self.xen.allocate(Channel::Device(cpu(0))).expect("room");
                self.model.ports.insert(port, None);
            }
            Op::Bind(place, n, a) => self.bind(place, n, a),
            Op::Unbind(a) => self.unbind(a),
            Op::Move(a, n) => self.relocate(a, n),
            Op::Send(a) => {
                let _on = percpu::hosted::enter(cpu(0));
                if let Some(port) = self.model.ever.get(&a) {
                    let current = port.incarnation == self.events.incarnation();
                    let expected = if current { SendOutcome::Sent } else { SendOutcome::Stale };
                    assert_eq!(self.events.send(*port), expected);
                }
            }
            Op::Suspend(resumed) => self.suspend(resumed),
        }
        self.queue();
        self.check();
    }

    /// Xen queues what waits on a port that somebody owns.
    fn queue(&mut self) {
        if self.abi == AbiKind::Fifo {
            let owner = |port: &u32| Some((*port, self.model.ports[port]?.0));
            let queued: Vec<_> = self.model.waiting.iter().filter_map(owner).collect();
            for (port, cpu) in queued {
                self.model.queued.entry(port).or_insert(cpu);
            }
        }
    }

    /// What must hold after each step.
    fn check(&self) {
        for n in 0..CPUS {
            assert_eq!(self.events.is_ready(cpu(n)), self.model.ready.contains(&n));
            if !self.model.ready.contains(&n) {
                continue;
            }
            let own: Vec<u32> = self.events.ports_racy(cpu(n)).map(|port| port.nr.get()).collect();
            let is_own = |(_, owner): &(&u32, &Option<(usize, What)>)| owner.is_some_and(|(owner, _)| owner == n);
            assert_eq!(own, self.model.ports.iter().filter(is_own).map(|(port, _)| *port).collect::<Vec<_>>());
        }
        for (port, owner) in &self.model.ports {
            // EV1.
            assert_eq!(self.xen.is_masked(*port), owner.is_none(), "port {port} of {owner:?}");
            assert_eq!(self.xen.is_pending(*port), self.model.waiting.contains(port));
        }
        for (a, action) in self.actions.iter().enumerate() {
            assert_eq!(action.port().map(|port| port.nr.get()), self.model.of_action(a));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn histories_agree_with_the_model(fifo: bool, ops in prop::collection::vec(op(), 1..if cfg!(miri) { 30 } else { 120 })) {
        let mut run = Run::new(if fifo { AbiKind::Fifo } else { AbiKind::TwoLevel });
        for op in &ops {
            run.step(op);
        }
        for n in 0..CPUS {
            run.upcall(n);
        }
        prop_assert!(run.model.waiting.iter().all(|port| run.model.ports[port].is_none()));
    }
}

//! Many CPUs against Xen: peers raise, devices are bound, unbound and moved, CPUs send to each other and come up, all at
//! once. What loom proves with two or three threads is played here with a dozen, on random schedules.
//!
//! What must hold: each event that was raised after its last handling is handled; none is handled on a CPU that its port
//! is not bound to; and the counters add up.
#![cfg(shuttle)]

#[macro_use]
mod each_abi;
mod prompt_xen;
mod schedules;

use std::ptr::NonNull;

use evtchn::hosted::{Batch, Channel, Fake, GLOBAL, cpu, masked, nr, quiesced};
use evtchn::{AbiKind, Action, CpuCounts, DeviceError, Events, Handlers, Ipi, Ports, SendOutcome, Virq};
use percpu::Masked;
use prompt_xen::Xen;
use schedules::explore;
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::Arc;
use shuttle::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use shuttle::thread::{self, JoinHandle};

with_each_abi! {
    everybody_at_once,
    cpus_come_up_under_fire_in_two_lives,
}

const MOST_CPUS: usize = 16;
const DEVICES: usize = 8;

/// One thing that is raised and handled.
#[derive(Default)]
struct Source {
    /// What was done before it was raised.
    work: AtomicUsize,
    /// How much of it a handler has seen.
    found: AtomicUsize,
    raised: AtomicUsize,
    runs: AtomicUsize,
}

impl Source {
    fn handle(&self) {
        self.look();
        self.runs.fetch_add(1, SeqCst);
    }

    fn look(&self) {
        self.found.fetch_max(self.work.load(SeqCst), SeqCst);
    }

    fn raise(&self, raise: impl FnOnce()) {
        self.work.fetch_add(1, SeqCst);
        self.raised.fetch_add(1, SeqCst);
        raise();
    }

    fn assert_settled(&self, name: &str, n: usize) {
        assert_eq!(self.found.load(SeqCst), self.work.load(SeqCst), "{name} {n}: an event was lost");
    }
}

/// What handlers reach: they are functions.
struct Scene {
    devices: [Source; DEVICES],
    /// CPUs on which the device's action may run, as bits.
    allowed: [AtomicUsize; DEVICES],
    timers: [Source; MOST_CPUS],
    /// For each CPU, who has posted to it, as bits; beside it what they have done before.
    inboxes: [AtomicUsize; MOST_CPUS],
    posted: [Source; MOST_CPUS],
    /// Upcalls begun and ended: odd while in one.
    upcalls: [AtomicUsize; MOST_CPUS],
    /// Threads that may still raise something.
    busy: AtomicUsize,
}

shuttle::lazy_static! {
    static ref SCENE: Scene = Scene {
        devices: Default::default(),
        allowed: Default::default(),
        timers: Default::default(),
        inboxes: Default::default(),
        posted: Default::default(),
        upcalls: Default::default(),
        busy: AtomicUsize::new(0),
    };
}

fn on_device(_: &Masked, action: &Action) {
    let (n, me) = (action.context(), percpu::current().index());
    assert_ne!(SCENE.allowed[n].load(SeqCst) & 1 << me, 0, "device {n} ran on cpu {me}");
    SCENE.devices[n].handle();
}

fn on_timer(_: &Masked) {
    SCENE.timers[percpu::current().index()].handle();
}

fn on_call(_: &Masked) {
    serve();
    SCENE.posted[percpu::current().index()].runs.fetch_add(1, SeqCst);
}

/// Empties this CPU's inbox.
fn serve() {
    let me = percpu::current().index();
    if SCENE.inboxes[me].swap(0, SeqCst) != 0 {
        SCENE.posted[me].look();
    }
}

fn handlers() -> Handlers {
    Handlers::new().virq(Virq::TIMER, on_timer).ipi(Ipi::Call, on_call)
}

#[derive(Clone)]
struct World {
    xen: Xen,
    fake: Fake,
    events: Arc<Events<Xen>>,
    nr_cpus: usize,
}

impl World {
    fn new(abi: AbiKind, nr_cpus: usize) -> World {
        let xen = Xen::new(nr_cpus);
        let fake = xen.fake().clone();
        let events = Arc::new(Events::new(nr_cpus, abi, handlers(), xen.clone()));
        let world = World { xen, fake, events, nr_cpus };
        world.attach();
        world
    }

    /// A new life begins.
    fn attach(&self) {
        let page = NonNull::from(&self.fake.0.shared);
        // SAFETY: `events` holds a handle on the page's owner, and no CPU runs yet.
        unsafe { self.events.attach(&quiesced(), page, Ports::Gone) }.expect("the fake knows both ABIs");
    }

    /// Binds the intents of the CPU that the thread plays.
    fn bring_up(&self) {
        let mut batch = Batch::new(&self.fake);
        let plan = self.events.plan(&masked(), &mut batch).expect("room");
        self.events.record(&masked(), self.fake.flags(percpu::current()), plan, &batch).expect("bound");
    }

    fn upcall(&self, n: usize) {
        SCENE.upcalls[n].fetch_add(1, SeqCst);
        self.events.demux(&masked(), self.fake.flags(cpu(n)));
        SCENE.upcalls[n].fetch_add(1, SeqCst);
    }

    /// A thread that raises or binds, with the CPUs awake until it is through.
    fn busy(&self, plays: usize, body: impl FnOnce(&World) + Send + 'static) -> JoinHandle<()> {
        let world = self.clone();
        SCENE.busy.fetch_add(1, SeqCst);
        thread::spawn(move || {
            let _on = percpu::hosted::enter(cpu(plays));
            body(&world);
            SCENE.busy.fetch_sub(1, SeqCst);
        })
    }

    /// CPU `n`: takes upcalls as Xen enters them, and sends to others in between, until nobody is busy.
    fn cpu(&self, n: usize, sends: usize, comes_up: bool) -> JoinHandle<()> {
        let world = self.clone();
        thread::spawn(move || {
            let _on = percpu::hosted::enter(cpu(n));
            if comes_up {
                world.bring_up();
                // What was posted before the port was there came without an event.
                serve();
            }
            let mut left = sends;
            loop {
                if world.fake.upcall_due(cpu(n)) {
                    world.upcall(n);
                } else if left > 0 {
                    left -= 1;
                    let target = thread_rng().gen_range(0..world.nr_cpus);
                    SCENE.posted[target].raise(|| {
                        SCENE.inboxes[target].fetch_or(1 << n, SeqCst);
                        let outcome = world.events.send_ipi(cpu(target), Ipi::Call);
                        assert!(matches!(outcome, SendOutcome::Sent | SendOutcome::Unbound), "{outcome:?}");
                    });
                } else if SCENE.busy.load(SeqCst) == 0 {
                    return;
                } else {
                    thread::yield_now();
                }
            }
        })
    }

    /// A peer that raises each of `devices`, in turn.
    fn peer(&self, devices: Vec<(usize, u32)>, rounds: usize) -> JoinHandle<()> {
        self.busy(0, move |world| {
            for (n, port) in (0..rounds).flat_map(|_| devices.clone()) {
                SCENE.devices[n].raise(|| world.xen.raise(port));
            }
        })
    }

    /// Xen's timers of some CPUs; those whose port is not bound yet are not there to be raised.
    fn timers(&self, of: Vec<usize>, rounds: usize) -> JoinHandle<()> {
        self.busy(0, move |world| {
            for n in (0..rounds).flat_map(|_| of.clone()) {
                if let Some(port) = world.fake.find(Channel::Virq(Virq::TIMER, cpu(n))) {
                    SCENE.timers[n].raise(|| world.xen.raise(port));
                }
            }
        })
    }

    fn bind(&self, n: usize, port: u32, to: usize, action: &'static Action) {
        SCENE.allowed[n].fetch_or(1 << to, SeqCst);
        loop {
            match self.events.bind_device(nr(port), cpu(to), action) {
                Ok(_) => break,
                // The CPU that it was bound to takes it off its queue.
                Err(DeviceError::StillQueued { .. } | DeviceError::CpuNotReady { .. }) => thread::yield_now(),
                Err(error) => panic!("device {n}: {error}"),
            }
        }
        // An event that came while it was being moved may have been swallowed.
        SCENE.devices[n].look();
    }

    fn unbind(&self, n: usize, from: usize, action: &'static Action) {
        self.events.unbind_device(action).expect("bound");
        let before = SCENE.upcalls[from].load(SeqCst);
        while before % 2 == 1 && SCENE.upcalls[from].load(SeqCst) == before {
            thread::yield_now();
        }
        SCENE.allowed[n].fetch_and(!(1 << from), SeqCst);
    }

    /// Lets Xen enter the last upcalls, then expects all work to have been seen.
    fn settle(&self) {
        for n in 0..self.nr_cpus {
            let _on = percpu::hosted::enter(cpu(n));
            while self.fake.upcall_due(cpu(n)) {
                self.upcall(n);
            }
        }
        (0..DEVICES).for_each(|n| SCENE.devices[n].assert_settled("device", n));
        (0..self.nr_cpus).for_each(|n| SCENE.timers[n].assert_settled("timer", n));
        (0..self.nr_cpus).for_each(|n| SCENE.posted[n].assert_settled("inbox", n));
        self.assert_counts();
    }

    fn assert_counts(&self) {
        let counts: Vec<CpuCounts> = (0..self.nr_cpus).map(|n| self.events.counts_racy(cpu(n))).collect();
        let sum = |of: fn(&CpuCounts) -> u64| counts.iter().map(of).sum::<u64>();
        let total = |sources: &[Source], of: fn(&Source) -> &AtomicUsize| {
            sources.iter().map(|source| of(source).load(SeqCst) as u64).sum::<u64>()
        };
        assert_eq!(sum(|c| c.devices), total(&SCENE.devices, |s| &s.runs));
        assert_eq!(sum(|c| c.virqs), total(&SCENE.timers, |s| &s.runs));
        assert_eq!(sum(|c| c.ipis), total(&SCENE.posted, |s| &s.runs));
        assert_eq!(sum(|c| c.sent) + sum(|c| c.unbound_sends), total(&SCENE.posted, |s| &s.raised));
        assert_eq!(sum(|c| c.refused_sends) + sum(|c| c.stale_sends), 0);
        let upcalls: u64 = SCENE.upcalls.iter().map(|nr| nr.load(SeqCst) as u64 / 2).sum();
        assert_eq!(sum(|c| c.upcalls), upcalls);
        assert!(sum(|c| c.spurious) + sum(|c| c.not_ready) <= upcalls);
        for (n, own) in counts.iter().enumerate() {
            let timer = &SCENE.timers[n];
            assert_eq!(own.virqs, timer.runs.load(SeqCst) as u64, "cpu {n} handled another's timer");
            assert!(timer.runs.load(SeqCst) <= timer.raised.load(SeqCst), "cpu {n}: a timer event was handled twice");
        }
    }
}

fn join(threads: Vec<JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().expect("a thread of the scene has panicked"));
}

fn action(n: usize) -> &'static Action {
    Box::leak(Box::new(Action::new(on_device, n)))
}

/// All CPUs are up. Half of the devices stay where they are, the others go from CPU to CPU.
fn everybody_at_once(abi: AbiKind) {
    explore(200, move || {
        let world = World::new(abi, 12);
        for n in 0..world.nr_cpus {
            let _on = percpu::hosted::enter(cpu(n));
            world.bring_up();
        }
        let devices: Vec<(usize, u32)> =
            (0..DEVICES).map(|n| (n, world.fake.allocate(Channel::Device(cpu(0))).expect("room"))).collect();
        let actions: Vec<&'static Action> = (0..DEVICES).map(action).collect();
        for (n, port) in &devices {
            world.bind(*n, *port, n % world.nr_cpus, actions[*n]);
        }
        let mut threads = Vec::new();
        for (n, port) in devices.iter().copied().filter(|(n, _)| n % 2 == 0) {
            let action = actions[n];
            threads.push(world.busy(n, move |world| {
                let mut at = n % world.nr_cpus;
                for _ in 0..3 {
                    world.unbind(n, at, action);
                    at = thread_rng().gen_range(0..world.nr_cpus);
                    world.bind(n, port, at, action);
                }
            }));
        }
        threads.extend(devices.chunks(3).map(|some| world.peer(some.to_vec(), 4)));
        threads.push(world.timers((0..world.nr_cpus).collect(), 2));
        threads.extend((0..world.nr_cpus).map(|n| world.cpu(n, 2, false)));
        join(threads);
        world.settle();
    });
}

/// Every CPU binds its intents while others send to it and devices are bound to it; then a restore, and all of it anew.
fn cpus_come_up_under_fire_in_two_lives(abi: AbiKind) {
    explore(200, move || {
        let world = World::new(abi, 8);
        let actions: Vec<&'static Action> = (0..DEVICES).map(action).collect();
        for life in 0..2 {
            if life > 0 {
                world.events.detach(&quiesced());
                world.fake.restore();
                (0..world.nr_cpus).for_each(|n| world.fake.place(cpu(n)));
                world.attach();
                SCENE.allowed.iter().for_each(|allowed| allowed.store(0, SeqCst));
            }
            let mut threads: Vec<JoinHandle<()>> = (0..world.nr_cpus).map(|n| world.cpu(n, 2, true)).collect();
            for (n, action) in actions.iter().copied().enumerate() {
                let port = world.fake.allocate(Channel::Device(cpu(0))).expect("room");
                threads.push(world.busy(n, move |world| world.bind(n, port, n, action)));
                if n % 2 == 0 {
                    threads.push(world.peer(vec![(n, port)], 3));
                }
            }
            threads.push(world.timers((0..world.nr_cpus).collect(), 2));
            join(threads);
            world.settle();
            assert!(world.fake.find(Channel::Virq(GLOBAL, cpu(0))).is_none(), "nobody has asked for it");
        }
    });
}

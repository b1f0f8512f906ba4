//! Many CPUs against Xen: peers raise, devices are bound, unbound and moved, CPUs send to each other and come up, all at
//! once. What loom proves with two or three threads is played here with a dozen, on random schedules.
//!
//! What must hold: each event that was raised after its last handling is handled; a device's handler runs where its port is
//! bound, or is being moved from or to, on one CPU at a time, and never after what it owns was dropped; no port is left
//! masked; and the counters add up.
//!
//! ORDERING: SeqCst throughout, in what watches: shuttle tries schedules and knows no other order.
#![cfg(shuttle)]

#[macro_use]
mod each_abi;
mod scene;
mod schedules;

use evtchn::hosted::{self, Channel, Fake, GLOBAL, cpu, masked, nr, quiesced};
use evtchn::{
    AbiKind, Action, Binding, CpuCounts, DeviceError, EndOfEvent, Events, Ipi, Ports, SendOutcome, Upcall, Virq,
};
use scene::{DEVICES, Owned, SCENE, Source, handlers, serve};
use schedules::explore;
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use shuttle::sync::{Arc, Mutex};
use shuttle::thread::{self, JoinHandle};

with_each_abi! {
    everybody_at_once,
    cpus_come_up_under_fire_in_two_lives,
    ports_that_storm_are_moved,
}

/// A device as its owner has it.
#[derive(Default)]
struct Device {
    port: u32,
    /// How many handlers it has had.
    handlers: usize,
    action: Option<Arc<Action>>,
}

#[derive(Clone)]
struct World {
    xen: Fake,
    events: Arc<Events<Fake>>,
    devices: Arc<[Mutex<Device>; DEVICES]>,
    nr_cpus: usize,
}

impl World {
    fn new(abi: AbiKind, nr_cpus: usize) -> World {
        let xen = Fake::new(nr_cpus);
        let events = Arc::new(hosted::boot(&xen, abi, handlers()));
        World { xen, events, devices: Arc::default(), nr_cpus }
    }

    /// Binds the intents of all CPUs.
    fn bring_up(&self) {
        for n in 0..self.nr_cpus {
            let _on = percpu::hosted::enter(cpu(n));
            hosted::bring_up(&self.events, &self.xen).expect("room");
        }
    }

    /// Gives device `n` a port of the toolstack's.
    fn plug(&self, n: usize) -> u32 {
        let port = self.xen.allocate(Channel::Device(cpu(0))).expect("room");
        self.device(n, |device| device.port = port);
        port
    }

    fn device<T>(&self, n: usize, look: impl FnOnce(&mut Device) -> T) -> T {
        look(&mut self.devices[n].lock().expect("no panic"))
    }

    /// Takes one step of what CPU `n` has to do; whether there was any. `tired`: its executor has had its turn.
    fn work(&self, n: usize, tired: bool) -> bool {
        let flags = self.xen.flags(cpu(n));
        if self.xen.upcall_due(cpu(n)) {
            SCENE.upcalls.fetch_add(1, SeqCst);
            if let Upcall::Handled(events) = self.events.demux(&masked(), flags) {
                SCENE.handled.fetch_add(events as usize, SeqCst);
            }
            return true;
        }
        let due = SCENE.to_end[n].swap(0, SeqCst);
        for device in (0..DEVICES).filter(|device| due & 1 << device != 0) {
            if let Some(action) = self.device(device, |device| device.action.clone()) {
                self.events.end_of_event(&action, flags);
            }
        }
        let muted = self.events.is_any_muted(&masked());
        if muted || tired {
            self.events.end_turn(flags);
        }
        due != 0 || muted
    }

    /// A thread that raises or binds, with the CPUs awake until it is through.
    fn busy(&self, body: impl FnOnce(&World) + Send + 'static) -> JoinHandle<()> {
        let world = self.clone();
        SCENE.busy.fetch_add(1, SeqCst);
        thread::spawn(move || {
            let _on = percpu::hosted::enter(cpu(0));
            body(&world);
            SCENE.busy.fetch_sub(1, SeqCst);
        })
    }

    /// CPU `n`: takes upcalls as Xen enters them, ends events, and sends to others in between, until nobody is busy.
    fn cpu(&self, n: usize, sends: usize, comes_up: bool) -> JoinHandle<()> {
        let world = self.clone();
        thread::spawn(move || {
            let _on = percpu::hosted::enter(cpu(n));
            if comes_up {
                hosted::bring_up(&world.events, &world.xen).expect("room");
                // What was posted before the port was there came without an event.
                serve();
            }
            let mut left = sends;
            loop {
                if world.work(n, thread_rng().gen_ratio(1, 4)) {
                    continue;
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
        self.busy(move |world| {
            for (n, port) in (0..rounds).flat_map(|_| devices.clone()) {
                SCENE.devices[n].raise(|| world.xen.raise(port));
            }
        })
    }

    /// Xen's timers; those whose port is not bound yet are not there to be raised.
    fn timers(&self, rounds: usize) -> JoinHandle<()> {
        self.busy(move |world| {
            for n in (0..rounds).flat_map(|_| 0..world.nr_cpus) {
                if let Some(port) = world.xen.find(Channel::Virq(Virq::TIMER, cpu(n))) {
                    SCENE.timers[n].raise(|| world.xen.raise(port));
                }
            }
        })
    }

    fn bind(&self, n: usize, to: usize) -> Binding {
        SCENE.allowed[n].fetch_or(1 << to, SeqCst);
        let nr_cpus = self.nr_cpus;
        let (port, action) = self.device(n, |device| {
            let owned = Owned { device: n, nr: device.handlers };
            device.handlers += 1;
            let end = if n % 4 < 2 { EndOfEvent::Late } else { EndOfEvent::AtOnce };
            let action = Action::new(end, n, move |_, action| owned.handle(action, nr_cpus));
            device.action = Some(action.clone());
            (device.port, action)
        });
        let binding = loop {
            match self.events.bind_device(nr(port), cpu(to), &action) {
                Ok(binding) => break binding,
                // The CPU that it was bound to takes it off its queue.
                Err(DeviceError::StillQueued { .. } | DeviceError::CpuNotReady { .. }) => thread::yield_now(),
                Err(error) => panic!("device {n}: {error}"),
            }
        };
        // An event that came while it belonged to nobody may have been swallowed.
        SCENE.devices[n].look();
        binding
    }

    fn unbind(&self, n: usize, binding: Binding) {
        self.device(n, |device| device.action = None);
        hosted::unbind(&self.events, binding).expect("bound");
        SCENE.allowed[n].store(0, SeqCst);
    }

    /// Moves device `n`, or leaves it at that half way, now and then.
    fn move_to(&self, n: usize, binding: &mut Binding, to: usize) {
        SCENE.allowed[n].fetch_or(1 << to, SeqCst);
        loop {
            match self.events.move_device(binding, cpu(to)) {
                Ok(mut moving) => {
                    while !moving.is_over().expect("a device's port") {
                        if thread_rng().gen_ratio(1, 16) {
                            return;
                        }
                        thread::yield_now();
                    }
                    SCENE.allowed[n].store(1 << to, SeqCst);
                    return;
                }
                Err(DeviceError::CpuNotReady { .. }) => thread::yield_now(),
                Err(error) => panic!("device {n}: {error}"),
            }
        }
    }

    /// Device `n` goes from CPU to CPU, mostly while it stays bound.
    ///
    /// With the 2-level ABI it is unbound only before it has been moved, and bound anew where it was; and it is bound for the
    /// first time before anybody raises it. For an unbound port is none of its former CPUs' to look at: who looked up whom
    /// to tell before, and sets PENDING after it is bound elsewhere, tells a CPU that leaves it alone.
    fn wanderer(&self, n: usize, mut binding: Binding, steps: usize) -> JoinHandle<()> {
        self.busy(move |world| {
            let mut was_moved = false;
            for _ in 0..steps {
                let to = thread_rng().gen_range(0..world.nr_cpus);
                let is_fifo = world.events.abi() == AbiKind::Fifo;
                if (is_fifo || !was_moved) && thread_rng().gen_ratio(1, 4) {
                    let to = if is_fifo { to } else { binding.cpu().index() };
                    world.unbind(n, binding);
                    binding = world.bind(n, to);
                } else {
                    world.move_to(n, &mut binding, to);
                    was_moved = true;
                }
            }
        })
    }

    /// Lets the CPUs do what is left, then expects all work to have been seen.
    fn settle(&self) {
        let round = |_| {
            let mut any = false;
            for n in 0..self.nr_cpus {
                let _on = percpu::hosted::enter(cpu(n));
                while self.work(n, false) {
                    any = true;
                }
            }
            any
        };
        assert!((0..100).any(|nr| !round(nr)), "events go round in circles");
        for n in 0..DEVICES {
            SCENE.devices[n].assert_settled("device", n);
            let (port, bound) = self.device(n, |device| (device.port, device.action.is_some()));
            assert!(!bound || !self.xen.is_masked(port), "device {n} was left masked");
        }
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
        let taken = sum(|c| c.devices + c.virqs + c.ipis + c.forwarded + c.unbound);
        assert_eq!(taken, SCENE.handled.load(SeqCst) as u64);
        assert_eq!(sum(|c| c.sent) + sum(|c| c.unbound_sends), total(&SCENE.posted, |s| &s.raised));
        assert_eq!(sum(|c| c.refused_sends) + sum(|c| c.stale_sends), 0);
        let upcalls = SCENE.upcalls.load(SeqCst) as u64;
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

/// All CPUs are up. Half of the devices stay where they are, the others go from CPU to CPU.
fn everybody_at_once(abi: AbiKind) {
    explore(400, move || {
        let world = World::new(abi, 12);
        world.bring_up();
        let devices: Vec<(usize, u32)> = (0..DEVICES).map(|n| (n, world.plug(n))).collect();
        let mut threads = Vec::new();
        for n in 0..DEVICES {
            if n % 2 == 0 {
                threads.push(world.wanderer(n, world.bind(n, n % world.nr_cpus), 3));
            } else {
                world.bind(n, n % world.nr_cpus);
            }
        }
        threads.extend(devices.chunks(3).map(|some| world.peer(some.to_vec(), 4)));
        threads.push(world.timers(2));
        threads.extend((0..world.nr_cpus).map(|n| world.cpu(n, 2, false)));
        join(threads);
        world.settle();
    });
}

/// Every CPU binds its intents while others send to it and devices are bound and moved to it; then a restore, and all of it anew.
fn cpus_come_up_under_fire_in_two_lives(abi: AbiKind) {
    explore(200, move || {
        let world = World::new(abi, 8);
        for life in 0..2 {
            if life > 0 {
                world.events.detach(&quiesced());
                world.xen.restore();
                (0..world.nr_cpus).for_each(|n| world.xen.place(cpu(n)));
                hosted::attach(&world.events, &world.xen, Ports::Gone);
                SCENE.allowed.iter().for_each(|allowed| allowed.store(0, SeqCst));
            }
            // This thread is one, until all are there.
            SCENE.busy.fetch_add(1, SeqCst);
            let mut threads: Vec<JoinHandle<()>> = (0..world.nr_cpus).map(|n| world.cpu(n, 2, true)).collect();
            for n in 0..DEVICES {
                let port = world.plug(n);
                let binding = world.bind(n, n % world.nr_cpus);
                threads.push(world.wanderer(n, binding, 1));
                if n % 2 == 0 {
                    threads.push(world.peer(vec![(n, port)], 3));
                }
            }
            threads.push(world.timers(2));
            SCENE.busy.fetch_sub(1, SeqCst);
            join(threads);
            world.settle();
            assert!(world.xen.find(Channel::Virq(GLOBAL, cpu(0))).is_none(), "nobody has asked for it");
        }
    });
}

/// Two ports, late and at once, are raised faster than they are handled, so that they are muted, and moved all the time.
fn ports_that_storm_are_moved(abi: AbiKind) {
    explore(150, move || {
        let world = World::new(abi, 3);
        world.bring_up();
        let devices: Vec<(usize, u32)> = [1, 2].iter().map(|n| (*n, world.plug(*n))).collect();
        let mut threads: Vec<JoinHandle<()>> =
            devices.iter().map(|(n, _)| world.wanderer(*n, world.bind(*n, 0), 6)).collect();
        threads.extend((0..3).map(|_| world.peer(devices.clone(), 100)));
        threads.extend((0..world.nr_cpus).map(|n| world.cpu(n, 2, false)));
        join(threads);
        world.settle();
    });
}

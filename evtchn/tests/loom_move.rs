//! Moving a device port while it fires, is muted, or has its event ended: no event is lost, no two CPUs run its handler at
//! once, and the port is not left masked.
//!
//! ORDERING: Relaxed throughout, in what watches: what is seen must be seen by the orderings of the code under test.
#![cfg(loom)]

#[macro_use]
mod each_abi;

use evtchn::hosted::{self, Channel, Fake, bring_up, cpu, masked, nr};
use evtchn::{AbiKind, Action, Binding, EndOfEvent, Events, Handlers};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use loom::thread;

with_each_abi! {
    moved_while_it_fires,
    moved_while_its_cpu_handles_an_event,
    moved_while_an_event_is_ended,
    found_where_it_is,
}

loom::lazy_static! {
    static ref WORK: AtomicUsize = AtomicUsize::new(0);
    static ref FOUND: AtomicUsize = AtomicUsize::new(0);
}

fn device(end: EndOfEvent) -> std::sync::Arc<Action> {
    Action::new(end, 0, |_, _| FOUND.store(WORK.load(Relaxed), Relaxed))
}

fn model(bound: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(bound);
    model.max_branches = 20_000;
    model.check(f);
}

/// Two CPUs, up, and a device's port on CPU 0.
fn up(abi: AbiKind, action: &std::sync::Arc<Action>) -> (Fake, Arc<Events<Fake>>, Binding) {
    cpus_up(2, abi, action)
}

/// As [`up`], with so many CPUs.
fn cpus_up(nr_cpus: usize, abi: AbiKind, action: &std::sync::Arc<Action>) -> (Fake, Arc<Events<Fake>>, Binding) {
    let xen = Fake::new(nr_cpus);
    let events = hosted::boot(&xen, abi, Handlers::new());
    for n in 0..nr_cpus {
        let _on = percpu::hosted::enter(cpu(n));
        bring_up(&events, &xen).expect("room");
    }
    let port = xen.allocate(Channel::Device(cpu(0))).expect("room");
    let _on = percpu::hosted::enter(cpu(0));
    let binding = events.bind_device(nr(port), cpu(0), action).expect("free");
    (xen, Arc::new(events), binding)
}

fn upcall(xen: &Fake, events: &Events<Fake>, n: usize) {
    let _on = percpu::hosted::enter(cpu(n));
    events.demux(&masked(), xen.flags(cpu(n)));
}

/// CPU `n` takes what upcalls Xen enters; the last ones after all else.
fn cpu_at_work(xen: &Fake, events: &Arc<Events<Fake>>, n: usize) -> thread::JoinHandle<()> {
    let (xen, events) = (xen.clone(), events.clone());
    thread::spawn(move || upcall(&xen, &events, n))
}

/// CPU `here` moves the port to CPU 1, and takes the upcalls that strike it meanwhile.
fn move_to_one(xen: &Fake, events: &Events<Fake>, binding: &mut Binding, here: usize) {
    let _on = percpu::hosted::enter(cpu(here));
    let mut moving = events.move_device(binding, cpu(1)).expect("up");
    while !moving.is_over().expect("a device's port") {
        if xen.upcall_due(cpu(here)) {
            upcall(xen, events, here);
        }
        thread::yield_now();
    }
}

/// Enters the last upcalls that Xen would; then all work must have been found, and the port be on CPU 1, unmasked.
fn settle(xen: &Fake, events: &Events<Fake>, binding: &Binding, late: bool) {
    let port = binding.port().nr.get();
    for n in [0, 1] {
        if xen.upcall_due(cpu(n)) {
            upcall(xen, events, n);
        }
    }
    assert!(late || (!xen.is_masked(port) && !xen.is_pending(port)), "an event was lost, or the port is mute");
    assert_eq!(FOUND.load(Relaxed), WORK.load(Relaxed), "the handler ran before the work");
    assert_eq!((binding.cpu(), xen.channel(port)), (cpu(1), Channel::Device(cpu(1))));
}

/// The peer sends twice while the port is moved; CPU 0 moves it itself.
fn moved_while_it_fires(abi: AbiKind) {
    model(2, move || {
        let (xen, events, mut binding) = up(abi, &device(EndOfEvent::AtOnce));
        let port = binding.port().nr.get();
        let peer = {
            let xen = xen.clone();
            thread::spawn(move || {
                for work in 1..=2 {
                    WORK.store(work, Relaxed);
                    xen.raise(port);
                }
            })
        };
        move_to_one(&xen, &events, &mut binding, 0);
        peer.join().expect("no panic");
        settle(&xen, &events, &binding, false);
    });
}

/// Both CPUs handle events while a third party moves the port.
fn moved_while_its_cpu_handles_an_event(abi: AbiKind) {
    model(2, move || {
        let action = device(EndOfEvent::AtOnce);
        let (xen, events, mut binding) = up(abi, &action);
        let port = binding.port().nr.get();
        WORK.store(1, Relaxed);
        xen.raise(port);
        let old = cpu_at_work(&xen, &events, 0);
        move_to_one(&xen, &events, &mut binding, 1);
        let runs = action.count();
        WORK.store(2, Relaxed);
        xen.raise(port);
        old.join().expect("no panic");
        assert_eq!(action.count(), runs, "the old CPU ran it after the move");
        settle(&xen, &events, &binding, false);
        // With the FIFO ABI Xen's unmask sets PENDING anew, also where the event has just been taken.
        let more = u64::from(abi == AbiKind::Fifo);
        assert!((1..=2 + more).contains(&action.count()), "{} runs for 2 events", action.count());
    });
}

/// The owner's task ends an event on CPU 0 while another moves the port: whoever is last, the port is not left mute.
fn moved_while_an_event_is_ended(abi: AbiKind) {
    model(2, move || {
        let action = device(EndOfEvent::Late);
        let (xen, events, mut binding) = up(abi, &action);
        let port = binding.port().nr.get();
        WORK.store(1, Relaxed);
        xen.raise(port);
        upcall(&xen, &events, 0);
        assert!(xen.is_masked(port));
        // It fires again, and is masked.
        WORK.store(2, Relaxed);
        xen.raise(port);
        let ender = {
            let (xen, events, action) = (xen.clone(), events.clone(), action.clone());
            thread::spawn(move || {
                let _on = percpu::hosted::enter(cpu(0));
                events.end_of_event(&action, xen.flags(cpu(0)));
                if xen.upcall_due(cpu(0)) {
                    upcall(&xen, &events, 0);
                }
            })
        };
        move_to_one(&xen, &events, &mut binding, 1);
        ender.join().expect("no panic");
        settle(&xen, &events, &binding, true);
        // If the event was handled, it has to be ended; if not, it was never told.
        let _on = percpu::hosted::enter(cpu(1));
        events.end_of_event(&action, xen.flags(cpu(1)));
        assert!(!xen.is_masked(port));
        WORK.store(3, Relaxed);
        xen.raise(port);
        settle(&xen, &events, &binding, true);
    });
}

/// The old CPU was told of an event that the new one takes. It finds the next one, forwards it, and leaves the mask to the owner, who ends the
/// first meanwhile: whoever is last, the port is not left mute. With the 2-level ABI, where a port that moves is waited for in no queue.
#[test]
fn forwarded_while_an_event_is_ended() {
    model(2, || {
        let action = device(EndOfEvent::Late);
        let (xen, events, mut binding) = up(AbiKind::TwoLevel, &action);
        let port = binding.port().nr.get();
        WORK.store(1, Relaxed);
        xen.raise(port);
        move_to_one(&xen, &events, &mut binding, 1);
        let old = cpu_at_work(&xen, &events, 0);
        if xen.upcall_due(cpu(1)) {
            upcall(&xen, &events, 1);
        }
        WORK.store(2, Relaxed);
        xen.raise(port);
        {
            let _on = percpu::hosted::enter(cpu(1));
            events.end_of_event(&action, xen.flags(cpu(1)));
        }
        old.join().expect("no panic");
        settle(&xen, &events, &binding, true);
    });
}

/// What the handler touches, one run after the other: loom stops if a run is not ordered after the one before.
struct Touched(UnsafeCell<()>);

// SAFETY: that it is never touched by two at once is what is tested here; loom stops if it is.
unsafe impl Send for Touched {}
// SAFETY: as above.
unsafe impl Sync for Touched {}

impl Touched {
    fn run(&self) {
        self.0.with_mut(|_| ());
    }
}

/// An event is ended, which unmasks the port, just as it is about to be moved; the old CPU takes the next one, and the new
/// CPU the one after. With the 2-level ABI, where nobody waits for the old CPU to take the port off its queue.
#[test]
fn handlers_take_turns() {
    model(2, || {
        let touched = Touched(UnsafeCell::new(()));
        let action = Action::new(EndOfEvent::Late, 0, move |_, _| touched.run());
        let (xen, events, mut binding) = cpus_up(3, AbiKind::TwoLevel, &action);
        let port = binding.port().nr.get();
        xen.raise(port);
        upcall(&xen, &events, 0);
        xen.raise(port);
        let ender = {
            let (xen, events, action) = (xen.clone(), events.clone(), action.clone());
            thread::spawn(move || {
                let _on = percpu::hosted::enter(cpu(2));
                events.end_of_event(&action, xen.flags(cpu(2)));
            })
        };
        let old = cpu_at_work(&xen, &events, 0);
        let mut moving = events.move_device(&mut binding, cpu(1)).expect("up");
        while !moving.is_over().expect("a device's port") {
            // From here on the new CPU is told, while the old one may still be at it.
            if xen.channel(port) == Channel::Device(cpu(1)) {
                xen.raise(port);
                upcall(&xen, &events, 1);
            }
            thread::yield_now();
        }
        ender.join().expect("no panic");
        old.join().expect("no panic");
    });
}

/// Who finds the action while it is moved finds all of it, also who knows nothing of its having been bound.
fn found_where_it_is(abi: AbiKind) {
    model(3, move || {
        let xen = Fake::new(2);
        let events = Arc::new(hosted::boot(&xen, abi, Handlers::new()));
        for n in [0, 1] {
            let _on = percpu::hosted::enter(cpu(n));
            bring_up(&events, &xen).expect("room");
        }
        let nr = nr(xen.allocate(Channel::Device(cpu(0))).expect("room"));
        let reader = {
            let events = events.clone();
            thread::spawn(move || {
                let _on = percpu::hosted::enter(cpu(1));
                let port = hosted::with_device(&events, nr, |action| action.port().map(|port| port.nr));
                assert!(port.is_none_or(|port| port == Some(nr)));
            })
        };
        let _on = percpu::hosted::enter(cpu(0));
        let mut binding = events.bind_device(nr, cpu(0), &device(EndOfEvent::AtOnce)).expect("free");
        let mut moving = events.move_device(&mut binding, cpu(1)).expect("up");
        while !moving.is_over().expect("a device's port") {
            thread::yield_now();
        }
        drop(moving);
        reader.join().expect("it was found whole");
    });
}

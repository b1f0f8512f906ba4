//! The grace period: an action that is unbound while its CPU handles events is freed after its last run, and never found
//! again. What a handler owns is touched by every run and by its end; loom sees when one of these is not ordered before
//! the other.
#![cfg(loom)]

#[macro_use]
mod each_abi;

use evtchn::hosted::{self, Channel, Fake, bring_up, cpu, masked, nr};
use evtchn::{AbiKind, Action, EndOfEvent, Events, Handlers};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

with_each_abi! {
    freed_after_its_last_run,
    the_port_is_bound_to_another,
    unbound_while_its_event_is_ended,
}

/// What a handler owns. Loom tracks who touches it.
struct Owned(UnsafeCell<u32>);

// SAFETY: that it is never touched by two at once is what is tested here; loom stops if it is.
unsafe impl Send for Owned {}
// SAFETY: as above.
unsafe impl Sync for Owned {}

impl Owned {
    fn touch(&self) {
        self.0.with(|owned| {
            // SAFETY: see above.
            assert_eq!(unsafe { *owned }, 1, "it was freed");
        });
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.with_mut(|owned| {
            // SAFETY: see above.
            unsafe { *owned = 0 }
        });
    }
}

fn owner() -> std::sync::Arc<Action> {
    let owned = Owned(UnsafeCell::new(1));
    Action::new(EndOfEvent::AtOnce, 0, move |_, _| owned.touch())
}

fn model(bound: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(bound);
    model.max_branches = 20_000;
    model.check(f);
}

/// Two CPUs, up, and a device's port with an event for CPU 1.
fn up(abi: AbiKind) -> (Fake, Arc<Events<Fake>>, u32) {
    let xen = Fake::new(2);
    let events = hosted::boot(&xen, abi, Handlers::new());
    for n in [0, 1] {
        let _on = percpu::hosted::enter(cpu(n));
        bring_up(&events, &xen).expect("room");
    }
    let port = xen.allocate(Channel::Device(cpu(0))).expect("room");
    (xen, Arc::new(events), port)
}

/// CPU 1 takes upcalls: the second begins after the first, and knows no more of the other CPU than it is told.
fn upcalls(xen: &Fake, events: &Arc<Events<Fake>>) -> thread::JoinHandle<()> {
    let (xen, events) = (xen.clone(), events.clone());
    thread::spawn(move || {
        let _on = percpu::hosted::enter(cpu(1));
        for _ in 0..2 {
            events.demux(&masked(), xen.flags(cpu(1)));
        }
    })
}

fn freed_after_its_last_run(abi: AbiKind) {
    model(2, move || {
        let (xen, events, port) = up(abi);
        let _on = percpu::hosted::enter(cpu(0));
        let binding = events.bind_device(nr(port), cpu(1), &owner()).expect("free");
        xen.raise(port);
        let target = upcalls(&xen, &events);
        hosted::unbind(&events, binding).expect("bound");
        target.join().expect("no panic");
        assert!(xen.is_masked(port), "EV1");
    });
}

/// The event that was for the old action is the new one's, or was handled; neither is used after its time.
fn the_port_is_bound_to_another(abi: AbiKind) {
    model(2, move || {
        let (xen, events, port) = up(abi);
        let _on = percpu::hosted::enter(cpu(0));
        let binding = events.bind_device(nr(port), cpu(1), &owner()).expect("free");
        xen.raise(port);
        let target = upcalls(&xen, &events);
        hosted::unbind(&events, binding).expect("bound");
        let new = owner();
        let _bound = events.bind_device(nr(port), cpu(1), &new).expect("free again");
        target.join().expect("no panic");
        xen.raise(port);
        let _on = percpu::hosted::enter(cpu(1));
        events.demux(&masked(), xen.flags(cpu(1)));
        assert!(new.count() >= 1 && !xen.is_pending(port) && !xen.is_masked(port));
    });
}

/// Its event is ended by a task of another CPU, which unmasks: the port is masked when it belongs to nobody.
fn unbound_while_its_event_is_ended(abi: AbiKind) {
    model(3, move || {
        let (xen, events, port) = up(abi);
        let _on = percpu::hosted::enter(cpu(0));
        let late = Action::new(EndOfEvent::Late, 0, |_, _| {});
        let binding = events.bind_device(nr(port), cpu(1), &late).expect("free");
        let ender = {
            let (xen, events, late) = (xen.clone(), events.clone(), late.clone());
            thread::spawn(move || {
                let _on = percpu::hosted::enter(cpu(1));
                events.end_of_event(&late, xen.flags(cpu(1)));
            })
        };
        hosted::unbind(&events, binding).expect("bound");
        ender.join().expect("no panic");
        assert!(xen.is_masked(port), "EV1");
    });
}

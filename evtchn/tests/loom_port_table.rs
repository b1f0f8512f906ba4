//! The port table: publishing an action against whoever looks it up, and taking it away under a running upcall.
//!
//! ORDERING: Relaxed throughout, in what watches: what is seen must be seen by the orderings of the code under test.
#![cfg(loom)]

use evtchn::hosted::{self, Channel, Fake, bring_up, cpu, masked, nr};
use evtchn::{AbiKind, Action, DeviceError, EndOfEvent, Events, Handlers};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use loom::thread;
use percpu::Masked;

loom::lazy_static! {
    static ref RUNS: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];
}

fn on_device(_: &Masked, action: &Action) {
    RUNS[action.context()].fetch_add(1, Relaxed);
}

fn action(context: usize) -> std::sync::Arc<Action> {
    Action::new(EndOfEvent::AtOnce, context, on_device)
}

fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(f);
}

/// One CPU, up, and a device's port.
fn up() -> (Fake, Arc<Events<Fake>>, u32) {
    let xen = Fake::new(1);
    let events = hosted::boot(&xen, AbiKind::TwoLevel, Handlers::new());
    let _on = percpu::hosted::enter(cpu(0));
    bring_up(&events, &xen).expect("room");
    let port = xen.allocate(Channel::Device(cpu(0))).expect("room");
    (xen, Arc::new(events), port)
}

/// PT1: who finds an action finds all that was written to it before it was stored, here its port.
#[test]
fn an_action_is_published_whole() {
    model(|| {
        let (_xen, events, port) = up();
        let reader = {
            let events = events.clone();
            thread::spawn(move || {
                let _on = percpu::hosted::enter(cpu(0));
                let found = hosted::with_device(&events, nr(port), |action| action.port().map(|port| port.nr));
                assert!(found.is_none_or(|found| found == Some(nr(port))));
            })
        };
        events.bind_device(nr(port), cpu(0), &action(0)).expect("free");
        reader.join().expect("the reader found it whole");
    });
}

#[test]
fn one_of_two_binders_wins() {
    model(|| {
        let (xen, events, port) = up();
        let actions = [action(0), action(1)];
        let other = {
            let (events, action) = (events.clone(), actions[1].clone());
            thread::spawn(move || events.bind_device(nr(port), cpu(0), &action).map(drop))
        };
        let one = events.bind_device(nr(port), cpu(0), &actions[0]).map(drop);
        let other = other.join().expect("no panic");
        let taken = Err(DeviceError::PortTaken { nr: nr(port) });
        let winner = if one.is_ok() { 0 } else { 1 };
        assert_eq!(if winner == 0 { other } else { one }, taken);
        assert!(actions[winner].port().is_some() && actions[1 - winner].port().is_none());

        xen.raise(port);
        let _on = percpu::hosted::enter(cpu(0));
        events.demux(&masked(), xen.flags(cpu(0)));
        assert_eq!(RUNS[winner].load(Relaxed), 1);
        assert_eq!(RUNS[1 - winner].load(Relaxed), 0);
    });
}

/// Unbinding while the event is being handled: the action runs or it does not, and once the port is bound to another
/// action, events are that one's, and the port is not left mute.
#[test]
fn unbind_and_bind_anew_under_an_upcall() {
    model(|| {
        let (xen, events, port) = up();
        let actions = [action(0), action(1)];
        let binding = events.bind_device(nr(port), cpu(0), &actions[0]).expect("free");
        xen.raise(port);
        let target = {
            let (xen, events) = (xen.clone(), events.clone());
            thread::spawn(move || {
                let _on = percpu::hosted::enter(cpu(0));
                events.demux(&masked(), xen.flags(cpu(0)));
            })
        };
        hosted::unbind(&events, binding).expect("bound above");
        let ran = RUNS[0].load(Relaxed);
        events.bind_device(nr(port), cpu(0), &actions[1]).expect("free again");
        target.join().expect("no panic");
        let old = RUNS[0].load(Relaxed);
        assert!(old <= 1 && old == ran, "the old action ran after it was unbound");

        xen.raise(port);
        let _on = percpu::hosted::enter(cpu(0));
        events.demux(&masked(), xen.flags(cpu(0)));
        assert!(!xen.is_masked(port) && !xen.is_pending(port));
        assert_eq!(RUNS[0].load(Relaxed), old, "the old action ran after the upcall it could be in");
        assert!(RUNS[1].load(Relaxed) >= 1);
    });
}

//! The upcall against Xen delivering at the same time: nothing is lost, nothing is handled twice, and a handler sees
//! what the sender did before it sent. Xen's side is `hosted::Fake::raise`, bit by bit as `event_2l.c`, and step by step as `event_fifo.c`.
//! Every scene is played with each ABI.
//!
//! Xen enters an upcall when it has set `upcall_pending` and upcalls are not masked. So a test lets the CPU look while
//! Xen is at work, and once more at the end if that flag is set, and only then.
//!
//! ORDERING: Relaxed throughout, in what watches: what is seen must be seen by the orderings of the code under test.
#![cfg(loom)]

#[macro_use]
mod each_abi;

use evtchn::hosted::{self, Batch, Channel, Fake, bring_up, cpu, masked, nr};
use evtchn::{AbiKind, Action, EndOfEvent, Events, Handlers, Ipi, Virq};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use loom::thread;
use percpu::Masked;

with_each_abi! {
    events_while_the_upcall_runs,
    two_senders_of_one_port,
    event_while_a_port_is_unmasked_by_its_cpu,
    cpus_take_only_their_own_events,
    event_while_a_device_is_bound_to_another_cpu,
    ipi_carries_the_senders_work,
}

/// What senders write before they send, and what handlers found of it.
struct Seen {
    work: [AtomicUsize; 2],
    found: [AtomicUsize; 2],
    runs: [AtomicUsize; 2],
}

loom::lazy_static! {
    static ref SEEN: Seen = Seen {
        work: [AtomicUsize::new(0), AtomicUsize::new(0)],
        found: [AtomicUsize::new(0), AtomicUsize::new(0)],
        runs: [AtomicUsize::new(0), AtomicUsize::new(0)],
    };
}

fn handle(n: usize) {
    SEEN.found[n].store(SEEN.work[n].load(Relaxed), Relaxed);
    SEEN.runs[n].fetch_add(1, Relaxed);
}

/// On CPU n, handler n.
fn on_timer(_: &Masked) {
    handle(percpu::current().index());
}

fn on_device(_: &Masked, action: &Action) {
    assert!(action.port().is_some(), "PT1: the port was entered before the action was stored");
    handle(action.context());
}

fn handlers() -> Handlers {
    Handlers::new().virq(Virq::TIMER, on_timer)
}

/// A domain whose CPUs are all up, with their spurious first upcalls behind them.
fn up(abi: AbiKind, nr_cpus: usize) -> (Fake, Arc<Events<Fake>>) {
    let xen = Fake::new(nr_cpus);
    let events = hosted::boot(&xen, abi, handlers());
    for n in 0..nr_cpus {
        let _on = percpu::hosted::enter(cpu(n));
        bring_up(&events, &xen).expect("room");
    }
    (xen, Arc::new(events))
}

fn upcall(xen: &Fake, events: &Events<Fake>, n: usize) {
    let _on = percpu::hosted::enter(cpu(n));
    events.demux(&masked(), xen.flags(cpu(n)));
}

/// Lets Xen enter the last upcall if it would, then expects `port`'s handler to have seen all work.
fn settle(xen: &Fake, events: &Events<Fake>, n: usize, handler: usize, port: u32, work: usize) {
    settle_doubled(xen, events, n, handler, port, work, 0);
}

/// As [`settle`], where the handler may have run `more` times for nothing.
fn settle_doubled(xen: &Fake, events: &Events<Fake>, n: usize, handler: usize, port: u32, work: usize, more: usize) {
    if xen.upcall_due(cpu(n)) {
        upcall(xen, events, n);
    }
    assert!(!xen.is_pending(port), "an event was lost");
    assert_eq!(SEEN.found[handler].load(Relaxed), work, "the handler ran before the work");
    let runs = SEEN.runs[handler].load(Relaxed);
    assert!((1..=work + more).contains(&runs), "{runs} runs for {work} events");
}

fn model(bound: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(bound);
    model.max_branches = 10_000;
    model.check(f);
}

fn events_while_the_upcall_runs(abi: AbiKind) {
    model(3, move || {
        let (xen, events) = up(abi, 1);
        let port = xen.find(Channel::Virq(Virq::TIMER, cpu(0))).expect("bound");
        let sender = {
            let xen = xen.clone();
            thread::spawn(move || {
                for work in 1..=2 {
                    SEEN.work[0].store(work, Relaxed);
                    xen.raise(port);
                }
            })
        };
        upcall(&xen, &events, 0);
        sender.join().expect("the sender does not panic");
        settle(&xen, &events, 0, 0, port, 2);
    });
}

fn two_senders_of_one_port(abi: AbiKind) {
    model(2, move || {
        let (xen, events) = up(abi, 1);
        let port = xen.find(Channel::Virq(Virq::TIMER, cpu(0))).expect("bound");
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let xen = xen.clone();
                thread::spawn(move || {
                    SEEN.work[0].fetch_add(1, Relaxed);
                    xen.raise(port);
                })
            })
            .collect();
        upcall(&xen, &events, 0);
        for sender in senders {
            sender.join().expect("the sender does not panic");
        }
        settle(&xen, &events, 0, 0, port, 2);
    });
}

fn event_while_a_port_is_unmasked_by_its_cpu(abi: AbiKind) {
    model(3, move || {
        let xen = Fake::new(1);
        let events = hosted::boot(&xen, abi, handlers());
        let _on = percpu::hosted::enter(cpu(0));
        let mut batch = Batch::new(&xen);
        let plan = events.plan(&masked(), &mut batch).expect("room");
        let port = xen.find(Channel::Virq(Virq::TIMER, cpu(0))).expect("bound");
        let sender = {
            let xen = xen.clone();
            thread::spawn(move || {
                SEEN.work[0].store(1, Relaxed);
                xen.raise(port);
            })
        };
        events.record(&masked(), xen.flags(cpu(0)), plan, &batch).expect("bound");
        upcall(&xen, &events, 0);
        sender.join().expect("the sender does not panic");
        settle(&xen, &events, 0, 0, port, 1);
    });
}

/// The ports of both CPUs stand in the same PENDING word.
fn cpus_take_only_their_own_events(abi: AbiKind) {
    model(2, move || {
        let (xen, events) = up(abi, 2);
        let ports = [0, 1].map(|n| xen.find(Channel::Virq(Virq::TIMER, cpu(n))).expect("bound"));
        // With the 2-level ABI both are told to look at the word, whoever the event is for.
        assert_eq!(ports[0] / 64, ports[1] / 64);
        SEEN.work[1].store(1, Relaxed);
        xen.raise(ports[1]);
        let other = {
            let (xen, events) = (xen.clone(), events.clone());
            thread::spawn(move || upcall(&xen, &events, 1))
        };
        SEEN.work[0].store(1, Relaxed);
        xen.raise(ports[0]);
        upcall(&xen, &events, 0);
        other.join().expect("the other CPU does not panic");
        for n in [0, 1] {
            settle(&xen, &events, n, n, ports[n], 1);
        }
    });
}

/// CPU 0 binds a device's port to CPU 1, which is taking upcalls, while the peer sends.
fn event_while_a_device_is_bound_to_another_cpu(abi: AbiKind) {
    model(2, move || {
        let (xen, events) = up(abi, 2);
        let port = xen.allocate(Channel::Device(cpu(0))).expect("room");
        let action = Action::new(EndOfEvent::AtOnce, 0, on_device);
        let peer = {
            let xen = xen.clone();
            thread::spawn(move || {
                SEEN.work[0].store(1, Relaxed);
                xen.raise(port);
            })
        };
        let target = {
            let (xen, events) = (xen.clone(), events.clone());
            thread::spawn(move || upcall(&xen, &events, 1))
        };
        {
            let _on = percpu::hosted::enter(cpu(0));
            events.bind_device(nr(port), cpu(1), &action).expect("free");
        }
        peer.join().expect("the peer does not panic");
        target.join().expect("the target does not panic");
        // The peer may have been told while the port was CPU 0's and masked; Xen's unmask tells CPU 1. With the FIFO ABI
        // it sets PENDING anew as it does so, also where the event has just been taken.
        let more = usize::from(abi == AbiKind::Fifo);
        settle_doubled(&xen, &events, 1, 0, port, 1, more);
    });
}

/// Sending is an ipi too: the sender's work is visible to the handler on the other CPU.
fn ipi_carries_the_senders_work(abi: AbiKind) {
    fn on_call(_: &Masked) {
        handle(0);
    }
    model(3, move || {
        let xen = Fake::new(2);
        let events = Arc::new(hosted::boot(&xen, abi, Handlers::new().ipi(Ipi::Call, on_call)));
        for n in [0, 1] {
            let _on = percpu::hosted::enter(cpu(n));
            bring_up(&events, &xen).expect("room");
        }
        let port = xen.find(Channel::Ipi(cpu(1))).expect("bound");
        let sender = {
            let events = events.clone();
            thread::spawn(move || {
                let _on = percpu::hosted::enter(cpu(0));
                for work in 1..=2 {
                    SEEN.work[0].store(work, Relaxed);
                    assert_eq!(events.send_ipi(cpu(1), Ipi::Call), evtchn::SendOutcome::Sent);
                }
            })
        };
        upcall(&xen, &events, 1);
        sender.join().expect("the sender does not panic");
        settle(&xen, &events, 1, 0, port, 2);
    });
}

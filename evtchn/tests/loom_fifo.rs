//! The FIFO ABI's queues against Xen appending at the same time: chains of ports, priorities, unmasking by hand while
//! Xen links, and ports that close while they stand in a queue (`loom_move.rs` has those that move). Xen's side is `hosted/fifo.rs`, step by step as
//! `event_fifo.c`. What both ABIs share is in `loom_upcall.rs`.
//!
//! ORDERING: Relaxed throughout, in what watches: what is seen must be seen by the orderings of the code under test.
#![cfg(loom)]

use evtchn::hosted::{self, Batch, Channel, Fake, bring_up, cpu, masked, nr};
use evtchn::{AbiKind, Action, EndOfEvent, Events, Handlers, Hypervisor, Virq};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use loom::thread;
use percpu::Masked;

const PORTS: usize = 3;

loom::lazy_static! {
    /// What was done before port n was raised; what its handler found of it; how often it ran.
    static ref WORK: [AtomicUsize; PORTS] = core::array::from_fn(|_| AtomicUsize::new(0));
    static ref FOUND: [AtomicUsize; PORTS] = core::array::from_fn(|_| AtomicUsize::new(0));
    static ref RUNS: [AtomicUsize; PORTS] = core::array::from_fn(|_| AtomicUsize::new(0));
}

fn on_device(_: &Masked, action: &Action) {
    let n = action.context();
    FOUND[n].store(WORK[n].load(Relaxed), Relaxed);
    RUNS[n].fetch_add(1, Relaxed);
}

/// A domain of `nr_cpus`, all up, with device ports of CPU 0.
fn up(nr_cpus: usize, nr_ports: usize) -> (Fake, Arc<Events<Fake>>, Vec<u32>) {
    let xen = Fake::new(nr_cpus);
    let events = hosted::boot(&xen, AbiKind::Fifo, Handlers::new());
    for n in 0..nr_cpus {
        let _on = percpu::hosted::enter(cpu(n));
        bring_up(&events, &xen).expect("room");
    }
    let _on = percpu::hosted::enter(cpu(0));
    let ports = (0..nr_ports).map(|n| {
        let port = xen.allocate(Channel::Device(cpu(0))).expect("room");
        let action = Action::new(EndOfEvent::AtOnce, n, on_device);
        events.bind_device(nr(port), cpu(0), &action).expect("free");
        port
    });
    let ports = ports.collect();
    (xen, Arc::new(events), ports)
}

fn upcall(xen: &Fake, events: &Events<Fake>, n: usize) {
    let _on = percpu::hosted::enter(cpu(n));
    events.demux(&masked(), xen.flags(cpu(n)));
}

/// A peer that works and raises each of `ports` in turn; the first is port `first`.
fn peer(xen: &Fake, first: usize, ports: &[u32]) -> thread::JoinHandle<()> {
    let (xen, ports) = (xen.clone(), ports.to_vec());
    thread::spawn(move || {
        for (n, port) in (first..).zip(ports) {
            WORK[n].fetch_add(1, Relaxed);
            xen.raise(port);
        }
    })
}

/// Lets Xen enter the last upcalls if it would, then expects each of `ports` to have seen all of its work.
fn settle(xen: &Fake, events: &Events<Fake>, nr_cpus: usize, ports: &[u32], more: usize) {
    for n in 0..nr_cpus {
        if xen.upcall_due(cpu(n)) {
            upcall(xen, events, n);
        }
    }
    for (n, port) in ports.iter().enumerate() {
        let (work, runs) = (WORK[n].load(Relaxed), RUNS[n].load(Relaxed));
        assert!(!xen.is_pending(*port), "port {n}: an event was lost");
        assert_eq!(FOUND[n].load(Relaxed), work, "port {n}: the handler ran before the work");
        assert!(runs <= work + more && (runs > 0) == (work > 0), "port {n}: {runs} runs for {work} events");
    }
}

fn model(bound: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(bound);
    model.max_branches = 20_000;
    model.check(f);
}

/// Xen appends to the chain while it is taken apart, down to the tail.
#[test]
fn a_chain_grows_while_it_is_taken() {
    model(3, || {
        let (xen, events, ports) = up(1, 3);
        peer(&xen, 0, &ports[..1]).join().expect("no panic");
        let peer = peer(&xen, 1, &ports[1..]);
        upcall(&xen, &events, 0);
        peer.join().expect("no panic");
        settle(&xen, &events, 1, &ports, 0);
    });
}

/// The tail itself fires again: it is taken, or links to itself nowhere.
#[test]
fn the_tail_fires_again() {
    model(3, || {
        let (xen, events, ports) = up(1, 2);
        peer(&xen, 0, &ports).join().expect("no panic");
        let peer = peer(&xen, 1, &ports[1..]);
        upcall(&xen, &events, 0);
        peer.join().expect("no panic");
        settle(&xen, &events, 1, &ports, 0);
    });
}

#[test]
fn two_senders_to_one_queue() {
    model(2, || {
        let (xen, events, ports) = up(1, 2);
        let peers = [peer(&xen, 0, &ports[..1]), peer(&xen, 1, &ports[1..])];
        upcall(&xen, &events, 0);
        for peer in peers {
            peer.join().expect("no panic");
        }
        settle(&xen, &events, 1, &ports, 0);
    });
}

#[test]
fn two_queues_of_one_cpu() {
    model(2, || {
        let (xen, events, ports) = up(1, 2);
        xen.set_priority(nr(ports[1]), 0).expect("bound");
        let peers = [peer(&xen, 0, &ports[..1]), peer(&xen, 1, &ports[1..])];
        upcall(&xen, &events, 0);
        for peer in peers {
            peer.join().expect("no panic");
        }
        settle(&xen, &events, 1, &ports, 0);
    });
}

/// CPU 0 is told by CPU 1 that a port is to be unmasked while its peer sends, and another links behind it.
#[test]
fn unmasked_while_xen_links() {
    model(2, || {
        let (xen, events, ports) = up(1, 2);
        let peer = peer(&xen, 0, &ports);
        let unmasker = {
            let xen = xen.clone();
            let port = ports[0];
            thread::spawn(move || xen.unmask(nr(port)).expect("bound"))
        };
        upcall(&xen, &events, 0);
        peer.join().expect("no panic");
        unmasker.join().expect("no panic");
        // Unmasking sets PENDING anew where an event waits or has just been taken.
        settle(&xen, &events, 1, &ports, 1);
    });
}

/// A port that is closed while it stands in a queue is not given out again before the queue's CPU has taken it off.
#[test]
fn a_port_closes_in_its_queue() {
    model(2, || {
        let (xen, events, ports) = up(1, 3);
        peer(&xen, 0, &ports).join().expect("no panic");
        let closer = {
            let xen = xen.clone();
            let port = ports[1];
            thread::spawn(move || xen.close(nr(port)).expect("open"))
        };
        upcall(&xen, &events, 0);
        closer.join().expect("no panic");
        settle(&xen, &events, 1, &ports[..1], 0);
        assert_eq!(RUNS[2].load(Relaxed), 1, "what stood behind it was reached");
        assert_eq!(xen.allocate(Channel::Device(cpu(0))), Ok(ports[1]), "it is off the queue");
    });
}

/// A CPU that unmasks its own port waits for Xen to be done with the word.
#[test]
fn nothing_is_unmasked_while_busy() {
    model(3, || {
        let xen = Fake::new(1);
        let events = hosted::boot(&xen, AbiKind::Fifo, Handlers::new().virq(Virq::TIMER, |_| ()));
        let _on = percpu::hosted::enter(cpu(0));
        let mut batch = Batch::new(&xen);
        let plan = events.plan(&masked(), &mut batch).expect("room");
        let port = xen.find(Channel::Virq(Virq::TIMER, cpu(0))).expect("bound");
        let linking = {
            let xen = xen.clone();
            thread::spawn(move || {
                let before = xen.set_busy(port, true);
                assert_eq!(xen.set_busy(port, false), before, "the mask changed under Xen's hands");
            })
        };
        events.record(&masked(), xen.flags(cpu(0)), plan, &batch).expect("bound");
        linking.join().expect("no panic");
        assert!(!xen.is_masked(port));
    });
}

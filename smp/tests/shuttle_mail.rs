//! A dozen CPUs that post to each other, call each other and wait for each other, on random schedules.
//!
//! What must hold: each call runs once, on the CPU that it was for, and after the caller's earlier calls to that CPU; each
//! wish that was posted is handled after it was posted; an inbox rings once for each time that it was empty.
//!
//! ORDERING: SeqCst throughout, in what watches: shuttle tries schedules and knows no other order.
#![cfg(shuttle)]

mod crowd;
#[path = "../../evtchn/tests/schedules/mod.rs"]
mod schedules;

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crowd::{Crowd, Upcalls, cpu};
use percpu::{CpuId, Masked, hosted};
use schedules::explore;
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::Arc;
use shuttle::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use shuttle::thread;
use smp::{CallNode, Kind, Mail, Pending};

const CPUS: usize = 12;
const TURNS: usize = 6;

shuttle::lazy_static! {
    /// For each target and caller, how many of its calls have run.
    static ref RAN: [[AtomicUsize; CPUS]; CPUS] = Default::default();
}

/// Notes a call; `argument` is who called whom, and the number of the call between the two.
fn note(_: &Masked, argument: usize) {
    let (nr, caller, target) = (argument / (CPUS * CPUS), argument / CPUS % CPUS, argument % CPUS);
    assert_eq!(percpu::current(), cpu(target), "a call ran on another CPU");
    assert_eq!(RAN[target][caller].fetch_add(1, SeqCst), nr, "a call was lost, came twice or out of order");
    crowd::did_something();
}

/// What one CPU does in its tasks. Returns how many calls it made to each of the others.
fn tasks(me: usize, mail: &Mail<Crowd>) -> [usize; CPUS] {
    let upcalls = Upcalls(mail);
    let mut nrs = [0; CPUS];
    let nodes: [&'static CallNode; 2] = [Box::leak(Box::default()), Box::leak(Box::default())];
    for _ in 0..TURNS {
        let target = thread_rng().gen_range(0..CPUS);
        match thread_rng().gen_range(0..5) {
            0 => mail.delivery().wish(mail, cpu(target), Kind::Reschedule),
            1 => mail.delivery().wish(mail, cpu(target), Kind::Alive),
            2 => {
                let came_back = mail.run_on(cpu(target), &upcalls, move |_| {
                    crowd::did_something();
                    (percpu::current(), me)
                });
                assert_eq!(came_back, Ok((cpu(target), me)));
            }
            way => {
                let argument = (nrs[target] * CPUS + me) * CPUS + target;
                nrs[target] += 1;
                let pending = loop {
                    match mail.call(cpu(target), nodes[way % 2], note, argument) {
                        Ok(pending) => break pending,
                        Err(_busy) => upcalls.step(),
                    }
                };
                leave(pending, &upcalls);
                mail.delivery().wish(mail, cpu(target), Kind::Rendezvous);
            }
        }
        upcalls.step();
    }
    nrs
}

/// One of the ways to go on after a call.
fn leave(mut pending: Pending, upcalls: &Upcalls<'_>) {
    let poll = |pending: &mut Pending| Pin::new(pending).poll(&mut Context::from_waker(Waker::noop()));
    match thread_rng().gen_range(0..4) {
        0 => pending.wait(upcalls),
        1 => drop(pending),
        2 => drop(poll(&mut pending)),
        _ => {
            while poll(&mut pending) == Poll::Pending {
                upcalls.step();
            }
        }
    }
}

#[test]
fn everybody_calls_everybody() {
    explore(600, || {
        let mail = Arc::new(Mail::new(CPUS, Crowd::new(CPUS)));
        let busy = Arc::new(AtomicUsize::new(CPUS));
        let cpus: Vec<_> = (0..CPUS)
            .map(|me| {
                let (mail, busy) = (mail.clone(), busy.clone());
                thread::spawn(move || {
                    let _on = hosted::enter(cpu(me));
                    let nrs = tasks(me, &mail);
                    busy.fetch_sub(1, SeqCst);
                    while busy.load(SeqCst) > 0 {
                        Upcalls(&mail).step();
                    }
                    nrs
                })
            })
            .collect();
        let called: Vec<[usize; CPUS]> = cpus.into_iter().map(|cpu| cpu.join().expect("a CPU has panicked")).collect();
        for cpu in CpuId::first(CPUS) {
            let _on = hosted::enter(cpu);
            Upcalls(&mail).take();
        }
        for (caller, nrs) in called.iter().enumerate() {
            for (target, nr) in nrs.iter().enumerate() {
                assert_eq!(RAN[target][caller].load(SeqCst), *nr, "calls of cpu {caller} to cpu {target}");
            }
        }
        mail.delivery().assert_settled();
    });
}

//! Rendezvous of the host's threads, who comes late to one or never, and who may not hold one.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use percpu::hosted;

use super::*;
use crate::tests::{Alone, Looks, Noted, kernel};

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("tests use small numbers")
}

fn admitted(nr: usize) -> Rendezvous {
    let rendezvous = Rendezvous::new(nr, Patience(3));
    CpuId::first(nr).skip(1).for_each(|cpu| rendezvous.admit(cpu));
    rendezvous
}

fn lead<'a, C: Clock>(mail: &'a Mail<Noted>, clock: &'a C, limit_ns: u64) -> Lead<'a, Noted, Alone, C> {
    Lead { mail, gate: &Alone, clock, limits: Limits::only(limit_ns), overdue: &|_| () }
}

#[test]
fn works_with_all_stopped_and_hands_out_the_outcome() {
    const NR: usize = 4;
    const OUTCOMES: [Outcome; 3] = [Outcome::Continued, Outcome::Cancelled, Outcome::Resumed];
    let (mail, _on) = kernel(NR);
    let rendezvous = admitted(NR);
    let running = AtomicUsize::new(NR - 1);
    let left = AtomicUsize::new(NR - 1);
    std::thread::scope(|scope| {
        for n in 1..NR {
            let (rendezvous, mail, running, left) = (&rendezvous, &mail, &running, &left);
            scope.spawn(move || {
                let _on = hosted::enter(cpu(n));
                for outcome in OUTCOMES {
                    while !rendezvous.is_requested() {
                        std::thread::yield_now();
                    }
                    running.fetch_sub(1, Relaxed);
                    let masked = hosted::masked();
                    let parked = rendezvous.park(&masked, &Alone, mail);
                    assert_eq!(parked.outcome(), outcome);
                    running.fetch_add(1, Relaxed);
                }
                let masked = hosted::masked();
                assert_eq!(rendezvous.park(&masked, &Alone, mail).outcome(), Outcome::Cancelled, "it is over");
                left.fetch_sub(1, Relaxed);
            });
        }
        for outcome in OUTCOMES {
            let result =
                rendezvous.run(&hosted::masked(), &lead(&mail, &Alone, 1), |_, _| (outcome, running.load(Relaxed)));
            assert_eq!(result, Ok(0), "nobody runs while the work is done");
        }
    });
    assert_eq!(left.into_inner(), 0);
}

/// As of one that was taken down in its wait and is started in a new domain, after the release.
#[test]
fn who_parks_once_more_gets_the_outcome_that_it_waited_for() {
    let (mail, _on) = kernel(2);
    let rendezvous = admitted(2);
    let generation = Phase::Run.next_generation();
    let released = Phase::Released(generation, Outcome::Resumed);
    for (ack, outcome) in [
        (Ack::Arrived(generation), Outcome::Resumed),
        (Ack::Serving(generation), Outcome::Resumed),
        (Ack::Arrived(released.next_generation()), Outcome::Cancelled),
        (Ack::Out, Outcome::Cancelled),
    ] {
        rendezvous.phase.store(released, Relaxed);
        rendezvous.acks.on(cpu(1)).store(ack, Relaxed);
        let _on = hosted::enter(cpu(1));
        let masked = hosted::masked();
        let parked = rendezvous.park(&masked, &Alone, &mail);
        assert_eq!(parked.outcome(), outcome, "{ack:?}");
        drop(parked);
        assert_eq!(rendezvous.acks.on(cpu(1)).load(Relaxed), Ack::Out);
    }
}

#[test]
fn names_those_that_do_not_come() {
    let (mail, _on) = kernel(40);
    let rendezvous = Rendezvous::new(40, Patience(3));
    [3, 7, 8, 39].into_iter().for_each(|n| rendezvous.admit(cpu(n)));
    // SAFETY: it was never started.
    unsafe { rendezvous.dismiss(cpu(8)) };
    let missing = rendezvous
        .run(&hosted::masked(), &lead(&mail, &Looks::default(), 10), |_, _| (Outcome::Resumed, ()))
        .expect_err("nobody comes");
    assert_eq!(missing.awaited, Awaited::Arriving);
    assert_eq!(missing.to_string(), "rendezvous: vcpus 3,7,39 did not arrive in time");
    assert!(!rendezvous.is_requested());
    let rung = mail.delivery().rings.lock().expect("no test panics in there").clone();
    assert_eq!(rung, [cpu(3), cpu(7), cpu(39)]);
}

#[test]
fn who_is_overdue_is_named_once_and_long_before_the_end() {
    let (mail, _on) = kernel(4);
    let rendezvous = admitted(4);
    let told = Cell::new(0);
    let clock = Looks::default();
    let overdue = |missing: &Missing| {
        told.set(told.get() + 1);
        assert_eq!(missing.to_string(), "rendezvous: vcpus 1-3 did not arrive in time");
        assert!((5..8).contains(&clock.0.get()), "{}", clock.0.get());
    };
    let limits = Limits { overdue_ns: 5, stuck_ns: 50, total_ns: 1000 };
    let lead = Lead { mail: &mail, gate: &Alone, clock: &clock, limits, overdue: &overdue };
    let missing = rendezvous.run(&hosted::masked(), &lead, |_, _| (Outcome::Resumed, ()));
    assert!(missing.is_err() && told.get() == 1);
    assert!((100..110).contains(&clock.0.get()), "nobody came for twice the limit, and it took {}", clock.0.get());
}

#[test]
fn a_late_comer_goes_on_at_once() {
    let (mail, _on) = kernel(2);
    let rendezvous = admitted(2);
    let masked = hosted::masked();
    let one = || {
        let _on = hosted::enter(cpu(1));
        rendezvous.park(&masked, &Alone, &mail).outcome()
    };
    assert_eq!(one(), Outcome::Cancelled, "there was none yet");
    let missing = rendezvous.run(&masked, &lead(&mail, &Looks::default(), 3), |_, _| (Outcome::Resumed, ()));
    assert!(missing.is_err());
    assert_eq!(one(), Outcome::Cancelled, "it is over");
}

#[test]
fn the_next_waits_until_all_have_left() {
    let (mail, _on) = kernel(2);
    let rendezvous = admitted(2);
    let go = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let follower = scope.spawn(|| {
            let _on = hosted::enter(cpu(1));
            let masked = hosted::masked();
            while !rendezvous.is_requested() {
                std::thread::yield_now();
            }
            let parked = rendezvous.park(&masked, &Alone, &mail);
            while !go.load(Relaxed) {
                std::thread::yield_now();
            }
            parked.outcome()
        });
        let masked = hosted::masked();
        let first = rendezvous.run(&masked, &lead(&mail, &Alone, 1), |_, _| (Outcome::Resumed, ()));
        assert_eq!(first, Ok(()));
        let missing = rendezvous
            .run(&masked, &lead(&mail, &Looks::default(), 3), |_, _| (Outcome::Continued, ()))
            .expect_err("it has not left");
        assert_eq!((missing.awaited, missing.cpus.len()), (Awaited::Leaving, 1));
        assert!(!rendezvous.is_requested(), "the outcome still stands");
        go.store(true, Relaxed);
        assert_eq!(follower.join().expect("the follower has panicked"), Outcome::Resumed);
    });
}

#[test]
fn alone_it_is_at_once() {
    let (mail, _on) = kernel(1);
    let rendezvous = admitted(1);
    let result = rendezvous.run(&hosted::masked(), &lead(&mail, &Looks::default(), 0), |_, _| (Outcome::Continued, 7));
    assert_eq!(result, Ok(7));
}

#[test]
#[should_panic(expected = "only vCPU 0 leads")]
fn only_vcpu_0_leads() {
    let (mail, _on) = kernel(2);
    let _one = hosted::enter(cpu(1));
    let _ = admitted(2).run(&hosted::masked(), &lead(&mail, &Alone, 1), |_, _| (Outcome::Continued, ()));
}

#[test]
#[should_panic(expected = "vCPU 0 leads and does not park")]
fn vcpu_0_does_not_park() {
    let (mail, _on) = kernel(2);
    let _ = admitted(2).park(&hosted::masked(), &Alone, &mail);
}

#[test]
#[should_panic(expected = "a rendezvous inside a rendezvous")]
fn not_inside_itself() {
    let (mail, _on) = kernel(1);
    let rendezvous = admitted(1);
    let _ = rendezvous.run(&hosted::masked(), &lead(&mail, &Alone, 1), |_, masked| {
        (Outcome::Continued, rendezvous.run(masked, &lead(&mail, &Alone, 1), |_, _| (Outcome::Continued, ())))
    });
}

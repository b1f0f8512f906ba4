//! The inbox: nothing is lost, each sender's order is kept, an empty inbox is what asks for a ring, and whoever takes
//! sees what the poster did before. Also the life of a call node, from claim to claim.
#![cfg(loom)]

mod model;

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll, Wake, Waker};

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::AtomicBool;
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread;
use model::{Bells, Step, check, on, step};
use percpu::{CpuId, Masked, hosted};
use smp::{CallNode, Delivery, Inbox, Kind, Kinds, Mail, Pending};

std::thread_local! {
    /// Arguments of the calls that have run; loom's threads share one thread of the system.
    static RAN: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

fn note(_masked: &Masked, argument: usize) {
    RAN.with(|ran| ran.borrow_mut().push(argument));
}

fn ran() -> Vec<usize> {
    RAN.with(|ran| ran.borrow().clone())
}

/// A node for ever, as statics cannot be made anew for each execution.
fn node() -> &'static CallNode {
    Box::leak(Box::default())
}

fn mail(nr: usize) -> Arc<Mail<Bells>> {
    RAN.with(|ran| ran.borrow_mut().clear());
    Arc::new(Mail::new(nr, Bells::new(nr)))
}

#[test]
fn calls_run_in_order_and_none_is_lost() {
    check(2, 4, || {
        let mail = mail(3);
        let senders = [1, 2].map(|n| {
            on(&mail, n, move |mail| {
                for call in 0..2 {
                    let pending = mail.call(CpuId::BOOT, node(), note, n * 10 + call);
                    drop(pending.expect("a new node is idle"));
                }
            })
        });
        let _on = hosted::enter(CpuId::BOOT);
        // Looks only when the bell has been rung: a ring that is missing sleeps for ever.
        while ran().len() < 4 {
            mail.delivery().sleep();
            mail.serve(&hosted::masked());
        }
        let of = |n| ran().into_iter().filter(|call| call / 10 == n).collect::<Vec<_>>();
        assert_eq!(of(1), [10, 11]);
        assert_eq!(of(2), [20, 21]);
        senders.into_iter().for_each(|sender| sender.join().expect("a sender has panicked"));
        assert_eq!(ran().len(), 4);
    });
}

/// What a poster leaves for the owner: one cell for each.
struct Gifts([UnsafeCell<u32>; 2]);

// SAFETY: loom checks every access.
unsafe impl Sync for Gifts {}
// SAFETY: as above.
unsafe impl Send for Gifts {}

#[test]
fn merged_posts_pass_on_both_pasts() {
    check(2, 6, || {
        let inbox = Arc::new((Inbox::new(), Gifts([UnsafeCell::new(0), UnsafeCell::new(0)])));
        let give = |n: usize, kind: Kind| {
            let inbox = Arc::clone(&inbox);
            move || {
                // SAFETY: loom checks it.
                inbox.1.0[n].with_mut(|gift| unsafe { *gift = 1 });
                let _first = inbox.0.post(Kind::Reschedule);
                let _joined = inbox.0.post(kind);
            }
        };
        let posters = [thread::spawn(give(0, Kind::Alive)), thread::spawn(give(1, Kind::Rendezvous))];
        let masked = hosted::masked();
        let mut left = vec![(Kind::Alive, 0), (Kind::Rendezvous, 1)];
        while !left.is_empty() {
            let kinds = inbox.0.take(&masked).kinds;
            left.retain(|(kind, n)| {
                let came = kinds.contains(*kind);
                if came {
                    // SAFETY: loom checks it.
                    assert_eq!(inbox.1.0[*n].with(|gift| unsafe { *gift }), 1);
                }
                !came
            });
            step();
        }
        posters.into_iter().for_each(|poster| poster.join().expect("a poster has panicked"));
    });
}

/// Counts rings.
struct Counting {
    bells: Bells,
    rings: loom::sync::atomic::AtomicUsize,
}

impl Delivery for Counting {
    fn ring(&self, cpu: CpuId) {
        self.rings.fetch_add(1, Relaxed);
        self.bells.ring(cpu);
    }

    fn handle(&self, _masked: &Masked, _kinds: Kinds) {}
}

#[test]
fn one_ring_for_each_time_it_was_empty() {
    check(3, 8, || {
        let delivery = Counting { bells: Bells::new(3), rings: loom::sync::atomic::AtomicUsize::new(0) };
        let mail = Arc::new(Mail::new(3, delivery));
        let senders = [1, 2].map(|n| on(&mail, n, |mail| mail.post(CpuId::BOOT, Kind::Reschedule)));
        let _on = hosted::enter(CpuId::BOOT);
        mail.delivery().bells.sleep();
        mail.serve(&hosted::masked());
        senders.into_iter().for_each(|sender| sender.join().expect("a sender has panicked"));
        let again = mail.delivery().bells.was_rung();
        assert_eq!(mail.delivery().rings.load(Relaxed), 1 + usize::from(again));
    });
}

#[test]
fn a_call_returns_its_result() {
    check(5, 12, || {
        let mail = mail(2);
        let caller = on(&mail, 1, |mail| {
            let gifts = Gifts([UnsafeCell::new(1), UnsafeCell::new(0)]);
            let result = mail.run_on(CpuId::BOOT, &Step, |_| {
                let gifts = &gifts;
                // SAFETY: loom checks it.
                gifts.0[0].with_mut(|gift| unsafe { *gift += 1 });
                7
            });
            assert_eq!(result, Ok(7));
            // SAFETY: loom checks it.
            assert_eq!(gifts.0[0].with(|gift| unsafe { *gift }), 2);
        });
        let _on = hosted::enter(CpuId::BOOT);
        mail.delivery().sleep();
        mail.serve(&hosted::masked());
        caller.join().expect("the caller has panicked");
    });
}

/// A waker that rings.
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.swap(true, Relaxed);
    }
}

/// Polls until ready, sleeping in between, with a new waker each time.
fn block_on(mut pending: Pending) {
    loop {
        let woken = std::sync::Arc::new(Woken(AtomicBool::new(false)));
        let waker = Waker::from(std::sync::Arc::clone(&woken));
        match Pin::new(&mut pending).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(()) => return,
            // A step in any case: the taker may be between its wake and the end.
            Poll::Pending => loop {
                step();
                if woken.0.swap(false, Relaxed) {
                    break;
                }
            },
        }
    }
}

#[test]
fn an_awaited_call_wakes_its_waiter() {
    check(4, 12, || {
        let mail = mail(2);
        let waiter = on(&mail, 1, |mail| {
            let node = node();
            for call in 0..2 {
                let pending = mail.call(CpuId::BOOT, node, note, call).expect("its end has been seen");
                block_on(pending);
                assert_eq!(ran().len(), call + 1);
            }
        });
        let _on = hosted::enter(CpuId::BOOT);
        while ran().len() < 2 {
            mail.delivery().sleep();
            mail.serve(&hosted::masked());
        }
        waiter.join().expect("the waiter has panicked");
    });
}

#[test]
fn a_new_waker_takes_the_place_of_the_old() {
    check(5, 12, || {
        let mail = mail(2);
        let waiter = on(&mail, 1, |mail| {
            let mut pending = mail.call(CpuId::BOOT, node(), note, 1).expect("a new node is idle");
            let stale = std::sync::Arc::new(Woken(AtomicBool::new(false)));
            let waker = Waker::from(stale);
            if Pin::new(&mut pending).poll(&mut Context::from_waker(&waker)).is_pending() {
                // The stale waker may be the one that is woken: the new one must be in place all the same.
                block_on(pending);
            }
        });
        let _on = hosted::enter(CpuId::BOOT);
        mail.delivery().sleep();
        mail.serve(&hosted::masked());
        waiter.join().expect("the waiter has panicked");
    });
}

#[test]
fn a_dropped_wait_leaves_a_node_that_can_be_claimed() {
    check(5, 12, || {
        let mail = mail(2);
        let caller = on(&mail, 1, |mail| {
            let node = node();
            let mut pending = mail.call(CpuId::BOOT, node, note, 1).expect("a new node is idle");
            let waker = Waker::from(std::sync::Arc::new(Woken(AtomicBool::new(false))));
            let _ = Pin::new(&mut pending).poll(&mut Context::from_waker(&waker));
            drop(pending);
            let again = loop {
                match mail.call(CpuId::BOOT, node, note, 2) {
                    Ok(pending) => break pending,
                    Err(_busy) => step(),
                }
            };
            block_on(again);
        });
        let _on = hosted::enter(CpuId::BOOT);
        while ran().len() < 2 {
            mail.delivery().sleep();
            mail.serve(&hosted::masked());
        }
        assert_eq!(ran(), [1, 2]);
        caller.join().expect("the caller has panicked");
    });
}

/// The first caller of a node leaves it in its own way; the second claims it as soon as it can, and waits.
fn a_node_goes_from_one_caller_to_another(leaves: fn(Pending)) {
    check(2, 6, move || {
        let mail = mail(3);
        let node = node();
        let first = mail.call(CpuId::BOOT, node, note, 1).expect("a new node is idle");
        let second = on(&mail, 2, move |mail| {
            let again = loop {
                match mail.call(CpuId::BOOT, node, note, 2) {
                    Ok(pending) => break pending,
                    Err(_busy) => step(),
                }
            };
            block_on(again);
        });
        let first = on(&mail, 1, move |_| leaves(first));
        let _on = hosted::enter(CpuId::BOOT);
        while ran().len() < 2 {
            mail.delivery().sleep();
            mail.serve(&hosted::masked());
        }
        assert_eq!(ran(), [1, 2]);
        first.join().expect("the first caller has panicked");
        second.join().expect("the second caller has panicked");
    });
}

#[test]
fn a_node_is_claimed_after_its_end_was_seen() {
    a_node_goes_from_one_caller_to_another(block_on);
}

#[test]
fn a_node_is_claimed_after_its_wait_was_dropped() {
    a_node_goes_from_one_caller_to_another(|mut pending| {
        let waker = Waker::from(std::sync::Arc::new(Woken(AtomicBool::new(false))));
        let _ = Pin::new(&mut pending).poll(&mut Context::from_waker(&waker));
    });
}

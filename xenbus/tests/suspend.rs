//! Quiesce and resume against the fake, both outcomes, with and without indices that survive the restore.
//!
//! ORDERING: Relaxed throughout: one thread plays all sides.
#![cfg(not(loom))]

use std::cell::{Cell, RefCell};
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering::Relaxed;
use xen_sys::hypercall::sched::SuspendOutcome::{Continued, Resumed};
use xenbus::fake::{self, Fake, Twist, block_on, poll_once, run_all, settle, try_block_on};
use xenbus::shutdown::{self, Request};
use xenbus::wire::Kind;
use xenbus::{AlreadyQuiescing, Cause, Change, Quiet, RingFault, Store};

type Boxed<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

fn quiesce<'s>(store: &'s Store, fake: &mut Fake) -> Quiet<'s> {
    let quiet = block_on(store, fake, store.quiesce()).expect("nobody else quiesces");
    let page = fake.page();
    assert_eq!(page.req_cons.load(Relaxed), page.req_prod.load(Relaxed));
    assert_eq!(page.rsp_cons.load(Relaxed), page.rsp_prod.load(Relaxed));
    quiet
}

#[test]
fn requests_on_their_way_end_first_and_new_ones_wait() {
    for outcome in [Continued, Resumed] {
        let (store, mut fake) = fake::pair(u32::MAX - 100);
        fake.chunk = if cfg!(miri) { 300 } else { 3 };
        let (store, order) = (&store, &RefCell::new(vec![]));
        let early = async {
            store.write("data/early", &"x".repeat(1200)).await.expect("early");
            order.borrow_mut().push("early");
        };
        let quiescing = async {
            let quiet = store.quiesce().await.expect("nobody else");
            order.borrow_mut().push("quiet");
            // Made while quiet; it can be polled, but nothing comes of it.
            for _ in 0..3 {
                store.on_event();
                yield_once().await;
            }
            order.borrow_mut().push("resume");
            quiet.resume(outcome);
        };
        let late = async {
            yield_once().await;
            store.write("data/late", "1").await.expect("late");
            order.borrow_mut().push("late");
        };
        // The pump sends the early one before it hears of the quiesce: a poll before the others.
        let mut early: Boxed<'_> = Box::pin(early);
        assert!(early.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_pending());
        fake.mute = true;
        settle(store, &mut fake);
        fake.mute = false;
        fake.say(&[]);
        run_all(store, &mut fake, vec![early, Box::pin(quiescing), Box::pin(late)]);
        assert_eq!(order.borrow()[..], ["early", "quiet", "resume", "late"]);
        assert_eq!(fake.value("data/late"), Some(&b"1"[..]));
    }
}

async fn yield_once() {
    let done = Cell::new(false);
    std::future::poll_fn(|cx| {
        if done.replace(true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

#[test]
fn open_transactions_end_and_new_ones_wait() {
    let (store, mut fake) = fake::pair(0);
    let (store, order) = (&store, &RefCell::new(vec![]));
    let gate = &Cell::new(false);
    let open = async {
        store
            .transaction(async |tx| {
                tx.write("data/a", "1").await?;
                while !gate.get() {
                    yield_once().await;
                }
                // The gate is closed; what belongs to the transaction passes.
                tx.write("data/b", "2").await
            })
            .await
            .expect("the open one");
        order.borrow_mut().push("committed");
    };
    let quiescing = async {
        while store.counters().replies < 2 {
            yield_once().await;
        }
        let mut quiesce = pin!(store.quiesce());
        for _ in 0..20 {
            assert!(poll_once(quiesce.as_mut()).is_pending());
            yield_once().await;
        }
        gate.set(true);
        let quiet = quiesce.await.expect("nobody else");
        order.borrow_mut().push("quiet");
        for _ in 0..20 {
            yield_once().await;
        }
        order.borrow_mut().push("resume");
        quiet.resume(Continued);
    };
    let next = async {
        while !gate.get() {
            yield_once().await;
        }
        store.transaction(async |tx| tx.write("data/c", "3").await).await.expect("the next one");
        order.borrow_mut().push("next");
    };
    run_all(store, &mut fake, vec![Box::pin(open) as Boxed<'_>, Box::pin(quiescing), Box::pin(next)]);
    assert_eq!(order.borrow()[..], ["committed", "quiet", "resume", "next"]);
    assert_eq!(fake.commits(), 2);
}

#[test]
fn after_resumed_watches_come_first_with_their_tokens_and_fire_once() {
    for reset_indices in [true, false] {
        let (store, mut fake) = fake::pair(12345);
        fake.chunk = 11;
        let (a, b) = block_on(&store, &mut fake, async {
            (store.watch("a", "first").await.expect("watch"), store.watch("b", "second").await.expect("watch"))
        });
        let (mut a, mut b) = (a, b);
        let before = fake.watches().to_vec();
        fake.set("b/x", b"");
        let quiet = quiesce(&store, &mut fake);
        fake.restore(reset_indices);
        let mut read = pin!(store.write("data/new", "1"));
        assert!(poll_once(read.as_mut()).is_pending());
        settle(&store, &mut fake);
        assert_eq!(fake.requests(), 0, "nothing goes while the store is quiet");
        quiet.resume(Resumed);
        assert_eq!(block_on(&store, &mut fake, read), Ok(()));
        assert_eq!(fake.log(), [Kind::Watch, Kind::Watch, Kind::Write]);
        assert_eq!(fake.watches(), before);
        settle(&store, &mut fake);
        for watch in [&mut a, &mut b] {
            assert_eq!(block_on(&store, &mut fake, watch.changed()), Ok(Change::Everything));
            // The fake's own first event came before the answer, and is in "everything".
            assert!(try_block_on(&store, &mut fake, watch.changed()).is_none());
        }
        fake.set("b/y", b"");
        assert_eq!(block_on(&store, &mut fake, b.changed()), Ok(Change::Path("b/y".into())));
        assert_eq!(store.counters().oddities, 0);
    }
}

#[test]
fn after_continued_nothing_is_done_again() {
    let (store, mut fake) = fake::pair(0);
    let mut watch = block_on(&store, &mut fake, store.watch("a", "t")).expect("watch");
    assert!(block_on(&store, &mut fake, watch.changed()).is_ok());
    let quiet = quiesce(&store, &mut fake);
    // An event that comes meanwhile is not lost.
    fake.set("a/1", b"");
    quiet.resume(Continued);
    assert_eq!(block_on(&store, &mut fake, watch.changed()), Ok(Change::Path("a/1".into())));
    assert_eq!(fake.log(), [Kind::Watch]);
}

#[test]
fn what_a_cut_off_xenstored_left_in_the_ring_is_thrown_away() {
    let (store, mut fake) = fake::pair(500);
    let quiet = quiesce(&store, &mut fake);
    // Half a watch event, put there after we were quiet; the indices survive.
    let page = fake.page();
    fake.say(&[15, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert!(fake.step());
    fake.restore(false);
    assert_ne!(page.rsp_cons.load(Relaxed), page.rsp_prod.load(Relaxed));
    quiet.resume(Resumed);
    assert_eq!(block_on(&store, &mut fake, store.write("a", "1")), Ok(()));
    assert_eq!(store.counters().oddities, 0);
}

#[test]
fn half_a_message_holds_the_quiesce_until_its_other_half_comes() {
    let (store, mut fake) = fake::pair(0);
    fake.say(&[15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4]);
    settle(&store, &mut fake);
    let mut quiesce = pin!(store.quiesce());
    assert!(try_block_on(&store, &mut fake, quiesce.as_mut()).is_none());
    fake.say(&[0, 0, 0, b'p', 0, b't', 0]);
    assert!(block_on(&store, &mut fake, quiesce).is_ok());
    assert_eq!(store.counters().events_stray, 1);
}

#[test]
fn a_quiesce_that_is_given_up_opens_the_gate() {
    let (store, mut fake) = fake::pair(0);
    fake.twists.push_back(Twist::Never);
    let mut read = pin!(store.read("a"));
    assert!(try_block_on(&store, &mut fake, read.as_mut()).is_none());
    {
        let mut quiesce = pin!(store.quiesce());
        assert!(try_block_on(&store, &mut fake, quiesce.as_mut()).is_none(), "one request is never answered");
        assert!(try_block_on(&store, &mut fake, store.write("a", "1")).is_none(), "the gate is closed");
        assert!(matches!(block_on(&store, &mut fake, store.quiesce()), Err(AlreadyQuiescing)));
    }
    assert_eq!(block_on(&store, &mut fake, store.write("a", "2")), Ok(()));
    assert_eq!(fake.value("a"), Some(&b"2"[..]));
}

/// A xenstored that answers under a wrong id has answered: neither this suspend nor any other waits for that request.
#[test]
fn a_lost_answer_does_not_take_suspend_away() {
    for outcome in [Continued, Resumed] {
        let (store, mut fake) = fake::pair(0);
        fake.set(shutdown::NODE, b"suspend");
        for wrong in 100..110 {
            // The look goes well, the start of the transaction does not.
            fake.twists.extend([Twist::Honest, Twist::Id(wrong)]);
            assert!(
                try_block_on(&store, &mut fake, shutdown::take_request(&store, |_| ())).is_none(),
                "and is given up"
            );
        }
        assert_eq!(block_on(&store, &mut fake, shutdown::take_request(&store, |_| ())), Ok(Some(Request::Suspend)));
        let quiet = quiesce(&store, &mut fake);
        assert_eq!(store.diagnosis().map(|diagnosis| (diagnosis.awaited, diagnosis.late)), Some((0, 10)));
        if outcome == Resumed {
            fake.restore(false);
        }
        quiet.resume(outcome);
        // After all: in the old domain it is known, and what it brings is given back. In the new one it is a stranger.
        let before = store.counters().oddities;
        fake.say_message(Kind::TransactionStart.raw(), 2, b"77\0");
        settle(&store, &mut fake);
        assert_eq!(fake.log().ends_with(&[Kind::TransactionEnd]), outcome == Continued);
        assert_eq!(store.counters().oddities - before, u64::from(outcome == Resumed));
        drop(quiesce(&store, &mut fake));
    }
}

#[test]
fn who_stops_waiting_lets_the_quiesce_go_on() {
    let (store, mut fake) = fake::pair(0);
    fake.twists.extend([Twist::Never, Twist::Never]);
    let mut read = Box::pin(store.read("a"));
    let mut transaction = Box::pin(store.transaction(async |_| Ok(())));
    assert!(try_block_on(&store, &mut fake, read.as_mut()).is_none());
    assert!(try_block_on(&store, &mut fake, transaction.as_mut()).is_none());
    let mut quiesce = pin!(store.quiesce());
    assert!(try_block_on(&store, &mut fake, quiesce.as_mut()).is_none());
    drop(read);
    assert!(try_block_on(&store, &mut fake, quiesce.as_mut()).is_none());
    drop(transaction);
    assert!(block_on(&store, &mut fake, quiesce).is_ok());
}

/// As above, with all of it in one run: the pump is polled only when it is woken.
#[test]
fn who_stops_waiting_wakes_the_pump() {
    let (store, mut fake) = fake::pair(0);
    fake.twists.push_back(Twist::Never);
    let store = &store;
    let giving_up = async {
        let mut read = Box::pin(store.read("a"));
        assert!(poll_once(read.as_mut()).is_pending());
        for _ in 0..20 {
            yield_once().await;
        }
        drop(read);
    };
    let quiescing = async {
        while store.counters().requests == 0 {
            yield_once().await;
        }
        assert!(store.quiesce().await.is_ok());
    };
    run_all(store, &mut fake, vec![Box::pin(giving_up) as Boxed<'_>, Box::pin(quiescing)]);
}

#[test]
fn watches_asked_for_again_in_vain_hold_nobody_up() {
    let (store, mut fake) = fake::pair(0);
    let mut watch = block_on(&store, &mut fake, store.watch("a", "t")).expect("watch");
    let quiet = quiesce(&store, &mut fake);
    fake.restore(true);
    fake.twists.push_back(Twist::Never);
    quiet.resume(Resumed);
    assert_eq!(block_on(&store, &mut fake, store.write("b", "1")), Ok(()));
    assert_eq!(fake.log(), [Kind::Watch, Kind::Write]);
    // xenstored fires what it has set: no answer is needed to see that it works.
    assert_eq!(block_on(&store, &mut fake, watch.changed()), Ok(Change::Everything));
    fake.set("a/1", b"");
    assert_eq!(block_on(&store, &mut fake, watch.changed()), Ok(Change::Path("a/1".into())));
    drop(quiesce(&store, &mut fake));
}

#[test]
fn a_ring_that_xenstored_is_resetting_is_left_alone() {
    let (store, mut fake) = fake::pair(500);
    let quiet = quiesce(&store, &mut fake);
    let page = fake.page();
    fake.say(&[1, 2, 3]);
    assert!(fake.step());
    fake.restore(false);
    page.connection.store(1, Relaxed);
    quiet.resume(Resumed);
    settle(&store, &mut fake);
    assert_eq!((page.rsp_cons.load(Relaxed), page.rsp_prod.load(Relaxed)), (500, 503));
    fake.restore(true);
    page.connection.store(0, Relaxed);
    store.on_event();
    assert_eq!(block_on(&store, &mut fake, store.write("a", "1")), Ok(()));
    assert_eq!(store.counters().oddities, 0);
}

#[test]
fn dropping_the_proof_is_continuing() {
    let (store, mut fake) = fake::pair(0);
    drop(quiesce(&store, &mut fake));
    assert_eq!(block_on(&store, &mut fake, store.write("a", "1")), Ok(()));
    // And again, any number of times.
    for outcome in [Continued, Resumed, Resumed, Continued] {
        quiesce(&store, &mut fake).resume(outcome);
        assert_eq!(block_on(&store, &mut fake, store.write("a", "1")), Ok(()));
    }
}

#[test]
fn a_broken_ring_is_mended_by_a_restore_and_not_by_a_continue() {
    let (store, mut fake) = fake::pair(0);
    let mut watch = block_on(&store, &mut fake, store.watch("a", "t")).expect("watch");
    fake.mute = true;
    fake.page().req_cons.store(77777, Relaxed);
    let error = block_on(&store, &mut fake, store.read("a")).expect_err("broken");
    assert!(matches!(error.cause, Cause::RingBroken(RingFault::RequestIndices { cons: 77777, .. })));

    // It does not stand in the way of a suspend. A request made meanwhile waits to see how that ends.
    for (outcome, mended) in [(Continued, false), (Resumed, true)] {
        let quiet = block_on(&store, &mut fake, store.quiesce()).expect("quiet");
        let mut write = pin!(store.write("a", "1"));
        assert!(poll_once(write.as_mut()).is_pending());
        if mended {
            fake.mute = false;
            fake.restore(true);
        }
        quiet.resume(outcome);
        assert_eq!(block_on(&store, &mut fake, write).is_ok(), mended);
        assert_eq!(store.fault().is_none(), mended);
    }
    assert_eq!(block_on(&store, &mut fake, watch.changed()), Ok(Change::Everything));
    assert_eq!(fake.watches().len(), 1);
}

#[test]
fn a_transaction_does_not_reach_over_a_restore() {
    let (store, mut fake) = fake::pair(0);
    let mut open = pin!(store.transaction(async |tx| {
        tx.write("a", "1").await?;
        yield_once().await;
        tx.write("b", "2").await
    }));
    // START and the first write are answered; then the ring breaks, so that the suspend does not wait for it.
    for _ in 0..2 {
        assert!(poll_once(open.as_mut()).is_pending());
        settle(&store, &mut fake);
    }
    assert_eq!(fake.open_transactions(), 1);
    fake.page().rsp_prod.store(99999, Relaxed);
    store.on_event();
    settle(&store, &mut fake);
    let quiet = block_on(&store, &mut fake, store.quiesce()).expect("quiet");
    fake.restore(true);
    quiet.resume(Resumed);
    assert_eq!(block_on(&store, &mut fake, open).expect_err("lost").cause, Cause::Lost);
    assert_eq!(fake.requests(), 0, "nothing of it went to the new xenstored");
}

#[test]
fn a_watch_dropped_or_taken_back_around_a_restore_is_not_set_again() {
    let (store, mut fake) = fake::pair(0);
    let (dropped, taken_back) = block_on(&store, &mut fake, async {
        (store.watch("a", "t").await.expect("watch"), store.watch("b", "t").await.expect("watch"))
    });
    let quiet = quiesce(&store, &mut fake);
    let mut unwatch = pin!(taken_back.unwatch());
    assert!(poll_once(unwatch.as_mut()).is_pending());
    drop(dropped);
    fake.restore(true);
    quiet.resume(Resumed);
    assert_eq!(block_on(&store, &mut fake, unwatch), Ok(()));
    settle(&store, &mut fake);
    assert_eq!(fake.requests(), 0);
    assert!(store.holds_no_request());
}

#[test]
fn a_watch_that_cannot_be_set_again_says_so_and_holds_nobody_up() {
    let (store, mut fake) = fake::pair(0);
    let mut watch = block_on(&store, &mut fake, store.watch("a", "t")).expect("watch");
    let quiet = quiesce(&store, &mut fake);
    fake.restore(true);
    fake.twists.push_back(Twist::Error("EQUOTA"));
    quiet.resume(Resumed);
    assert_eq!(block_on(&store, &mut fake, store.write("a", "1")), Ok(()));
    let error = block_on(&store, &mut fake, watch.changed()).expect_err("twisted");
    assert_eq!(error.to_string(), "xenstore watch a: EQUOTA");
    let quiet = quiesce(&store, &mut fake);
    fake.restore(true);
    quiet.resume(Resumed);
    assert_eq!(block_on(&store, &mut fake, watch.changed()), Ok(Change::Everything));
}

#[test]
fn a_suspend_while_watches_are_being_set_again_starts_over() {
    let (store, mut fake) = fake::pair(0);
    let _watches = block_on(&store, &mut fake, async {
        let mut watches = vec![];
        for n in 0..20 {
            watches.push(store.watch(&format!("w/{n}"), "t").await.expect("watch"));
        }
        watches
    });
    let quiet = quiesce(&store, &mut fake);
    fake.restore(true);
    fake.chunk = 60;
    quiet.resume(Resumed);
    {
        let mut pump = pin!(store.pump());
        for _ in 0..3 {
            assert!(poll_once(pump.as_mut()).is_pending());
            fake.step();
        }
    }
    assert!((1..20).contains(&fake.watches().len()), "{}", fake.watches().len());
    let quiet = quiesce(&store, &mut fake);
    fake.restore(false);
    quiet.resume(Resumed);
    settle(&store, &mut fake);
    let mut tokens: Vec<_> = fake.watches().iter().map(|(_, token)| token.clone()).collect();
    tokens.sort();
    tokens.dedup();
    assert_eq!((tokens.len(), fake.watches().len()), (20, 20));
}

#[test]
fn an_error_word_that_came_along_through_a_restore_is_old_news() {
    let (store, mut fake) = fake::pair(0);
    let page = fake.page();
    page.error.store(3, Relaxed);
    assert!(block_on(&store, &mut fake, store.read("a")).is_err());
    block_on(&store, &mut fake, store.quiesce()).expect("quiet").resume(Resumed);
    assert_eq!(store.fault(), None);
    assert!(try_block_on(&store, &mut fake, store.read("a")).is_none());
    assert_ne!(page.req_prod.load(Relaxed), 0, "the request went out");
    page.error.store(2, Relaxed);
    store.on_event();
    settle(&store, &mut fake);
    assert_eq!(store.fault(), Some(RingFault::HungUp { error: 2 }));
}

#[test]
fn a_transaction_started_and_not_collected_does_not_reach_over_a_restore() {
    for collect in [true, false] {
        let (store, mut fake) = fake::pair(0);
        let mut open = Box::pin(store.transaction(async |tx| tx.write("a", "1").await));
        assert!(poll_once(open.as_mut()).is_pending());
        settle(&store, &mut fake);
        assert_eq!(fake.open_transactions(), 1);
        fake.page().rsp_prod.store(99999, Relaxed);
        store.on_event();
        settle(&store, &mut fake);
        let quiet = block_on(&store, &mut fake, store.quiesce()).expect("quiet");
        fake.restore(true);
        quiet.resume(Resumed);
        if collect {
            assert_eq!(block_on(&store, &mut fake, open).expect_err("lost").cause, Cause::Lost);
        } else {
            drop(open);
        }
        settle(&store, &mut fake);
        assert_eq!(fake.requests(), 0, "nothing of it went to the new xenstored");
        assert!(store.holds_no_request());
    }
}

/// A "slow" resume, which `xl` does not do: the hypercall says 0, and it is the old domain all the same.
#[test]
fn watches_that_were_not_taken_away_are_taken_as_set() {
    let (store, mut fake) = fake::pair(0);
    let mut watch = block_on(&store, &mut fake, store.watch("a", "t")).expect("watch");
    quiesce(&store, &mut fake).resume(Resumed);
    assert_eq!(block_on(&store, &mut fake, watch.changed()), Ok(Change::Everything));
    fake.set("a", b"1");
    assert_eq!(block_on(&store, &mut fake, watch.changed()), Ok(Change::Path("a".into())));
    assert_eq!(fake.watches().len(), 1);
}

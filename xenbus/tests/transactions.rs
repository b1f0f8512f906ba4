//! Transactions against the fake: conflicts, their bound, aborts, dropped futures, and how many are open at a time.
#![cfg(not(loom))]

use std::cell::Cell;
use std::pin::{Pin, pin};
use xen_sys::Errno;
use xenbus::fake::{self, Twist, block_on, poll_once, run_all, settle, try_block_on};
use xenbus::wire::Kind;
use xenbus::{Cause, Store, StoreError, TRANSACTIONS_MAX, TRIES_MAX};

async fn increment(store: &Store) -> Result<u32, StoreError> {
    store
        .transaction(async |tx| {
            let count: u32 = tx.read("count").await?.parse().expect("a number");
            tx.write("count", &(count + 1).to_string()).await?;
            Ok(count + 1)
        })
        .await
}

/// The kernel's executor takes only futures that may move between threads.
#[test]
fn futures_may_be_sent() {
    fn sent<T: Send>(future: T) -> T {
        future
    }
    let (store, mut fake) = fake::pair(0);
    fake.set("count", b"1");
    assert_eq!(block_on(&store, &mut fake, sent(increment(&store))), Ok(2));
    drop(sent(store.pump()));
    drop(sent(store.quiesce()));
    drop(sent(xenbus::shutdown::take_request(&store, |_| ())));
    drop(sent(xenbus::shutdown::take_request_at_once(&store, || ())));
    drop(sent(xenbus::sysrq::take_key(&store)));
    drop(sent(async {
        let mut watch = store.watch("a", "t").await?;
        watch.changed().await
    }));
}

#[test]
fn a_conflict_is_tried_again_from_the_start() {
    let (store, mut fake) = fake::pair(0);
    fake.set("count", b"1");
    fake.intruders.extend([("count".into(), b"10".to_vec()), ("count".into(), b"20".to_vec())]);
    assert_eq!(block_on(&store, &mut fake, increment(&store)), Ok(21));
    assert_eq!(fake.value("count"), Some(&b"21"[..]));
    assert_eq!(fake.commits(), 1);
    assert_eq!(fake.log().iter().filter(|&&kind| kind == Kind::TransactionStart).count(), 3);
}

#[test]
fn conflicts_without_end_are_given_up() {
    let (store, mut fake) = fake::pair(0);
    fake.set("count", b"1");
    fake.intruders.extend((0..1000).map(|_| ("count".into(), b"1".to_vec())));
    let error = block_on(&store, &mut fake, store.transaction(async |_| Ok(()))).expect_err("never succeeds");
    assert_eq!(error.cause, Cause::Conflict { tries: TRIES_MAX });
    assert_eq!(fake.intruders.len(), 1000 - TRIES_MAX as usize);
    assert_eq!(fake.open_transactions(), 0);
}

#[test]
fn a_body_that_fails_aborts() {
    let (store, mut fake) = fake::pair(0);
    let tries = Cell::new(0);
    let error = block_on(
        &store,
        &mut fake,
        store.transaction(async |tx| {
            tries.set(tries.get() + 1);
            tx.write("data/half", "1").await?;
            tx.read("nowhere").await
        }),
    )
    .expect_err("the body fails");
    settle(&store, &mut fake);
    assert!(error.is(Errno::ENOENT));
    assert_eq!((tries.get(), fake.open_transactions(), fake.commits()), (1, 0, 0));
    assert_eq!(fake.value("data/half"), None);
    assert!(store.holds_no_request());
}

#[test]
fn a_commit_that_fails_otherwise_is_an_error() {
    let (store, mut fake) = fake::pair(0);
    fake.twists.extend([Twist::Honest, Twist::Error("EIO")]);
    let error = block_on(&store, &mut fake, store.transaction(async |_| Ok(()))).expect_err("twisted");
    assert!(error.is(Errno::EIO));
    assert_eq!(error.op, Kind::TransactionEnd);
}

/// Dropped after every possible number of steps, a transaction is either committed whole or not there, and never open.
#[test]
fn dropped_at_any_point_it_is_closed() {
    let mut outcomes = std::collections::BTreeSet::new();
    for polls in (1..40).step_by(if cfg!(miri) { 13 } else { 1 }) {
        let (store, mut fake) = fake::pair(7);
        fake.set("count", b"1");
        fake.chunk = 9;
        {
            let mut future = pin!(increment(&store));
            let mut pump = pin!(store.pump());
            for _ in 0..polls {
                if poll_once(future.as_mut()).is_ready() {
                    break;
                }
                assert!(poll_once(pump.as_mut()).is_pending());
                fake.step();
                assert!(poll_once(pump.as_mut()).is_pending());
            }
        }
        settle(&store, &mut fake);
        assert_eq!(fake.open_transactions(), 0, "after {polls} steps");
        assert!(store.holds_no_request(), "after {polls} steps");
        outcomes.insert(fake.value("count").map(<[u8]>::to_vec));
        assert_eq!(block_on(&store, &mut fake, store.read("count")).map(|count| count.len()), Ok(1));
    }
    assert_eq!(outcomes.len(), 2, "some were committed, some were not");
}

#[test]
fn a_start_that_nobody_collects_is_aborted() {
    let (store, mut fake) = fake::pair(0);
    {
        let mut future = pin!(store.transaction(async |_| Ok(())));
        assert!(poll_once(future.as_mut()).is_pending());
        // The reply to START comes and lies there.
        settle(&store, &mut fake);
        assert_eq!(fake.open_transactions(), 1);
    }
    settle(&store, &mut fake);
    assert_eq!(fake.open_transactions(), 0);
    assert!(store.holds_no_request());
}

#[test]
fn starts_that_fail_do_not_count_as_open() {
    let (store, mut fake) = fake::pair(0);
    for _ in 0..TRANSACTIONS_MAX {
        fake.twists.push_back(Twist::Error("ENOSPC"));
        let error = block_on(&store, &mut fake, store.transaction(async |_| Ok(()))).expect_err("twisted");
        assert!(error.is(Errno::ENOSPC));
    }
    assert_eq!(block_on(&store, &mut fake, store.transaction(async |_| Ok(()))), Ok(()));
}

#[test]
fn few_are_open_at_a_time_and_all_get_their_turn() {
    let (store, mut fake) = fake::pair(0);
    fake.reorder = 50;
    let (store, done) = (&store, &Cell::new(0));
    let count = if cfg!(miri) { TRANSACTIONS_MAX + 1 } else { 30 };
    let tasks = (0..count).map(|n| {
        Box::pin(async move {
            let path = format!("data/{n}");
            // Under a xenstored whose conflicts are coarse, this one may take many tries.
            let outcome = store.transaction(async |tx| tx.write(&path, "1").await).await;
            assert!(outcome.is_ok() || matches!(outcome, Err(StoreError { cause: Cause::Conflict { .. }, .. })));
            done.set(done.get() + 1);
        }) as Pin<Box<dyn Future<Output = ()> + '_>>
    });
    run_all(store, &mut fake, tasks.collect());
    assert_eq!(done.get(), count);
    assert!(fake.most_transactions() <= TRANSACTIONS_MAX, "{}", fake.most_transactions());
    assert!(fake.most_transactions() > 1, "some did overlap");
    assert_eq!(fake.open_transactions(), 0);
}

#[test]
fn an_end_that_is_never_answered_does_not_end() {
    let (store, mut fake) = fake::pair(0);
    fake.twists.extend([Twist::Honest, Twist::Never]);
    assert!(try_block_on(&store, &mut fake, store.transaction(async |_| Ok(()))).is_none());
}

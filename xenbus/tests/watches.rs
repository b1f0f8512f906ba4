//! Watches against the fake: what reaches their owner, how they come and go, and what is left when they are dropped.
#![cfg(not(loom))]

use std::pin::{Pin, pin};
use xen_sys::Errno;
use xenbus::fake::{self, Twist, block_on, poll_once, run_all, settle, try_block_on};
use xenbus::wire::Kind;
use xenbus::{Cause, Change, Oddity, QUEUE_MAX, Refusal};

fn path(path: &str) -> Change {
    Change::Path(path.into())
}

#[test]
fn a_watch_fires_at_once_and_at_every_change_below_it() {
    // The first event comes before the reply, or after it.
    for (chunk, reorder) in [(1, 1), (4096, 1), (4096, 2)] {
        let (store, mut fake) = fake::pair(u32::MAX - 50);
        (fake.chunk, fake.reorder) = (chunk, reorder);
        let mut watch = block_on(&store, &mut fake, store.watch("control/shutdown", "shutdown")).expect("watch");
        assert_eq!(fake.watches(), [("control/shutdown".into(), "shutdown#0".into())]);
        assert_eq!(block_on(&store, &mut fake, watch.changed()), Ok(path("control/shutdown")));
        assert!(try_block_on(&store, &mut fake, watch.changed()).is_none());
        fake.set("control/shutdown", b"suspend");
        fake.set("control/other", b"");
        assert_eq!(block_on(&store, &mut fake, watch.changed()), Ok(path("control/shutdown")));
        assert!(try_block_on(&store, &mut fake, watch.changed()).is_none());
        block_on(&store, &mut fake, store.write("control/shutdown/below", "")).expect("write");
        assert_eq!(block_on(&store, &mut fake, watch.changed()), Ok(path("control/shutdown/below")));
    }
}

#[test]
fn the_owner_is_woken_by_a_change_while_it_waits() {
    let (store, mut fake) = fake::pair(0);
    let store = &store;
    let mut watch = block_on(store, &mut fake, store.watch("data", "t")).expect("watch");
    assert_eq!(block_on(store, &mut fake, watch.changed()), Ok(path("data")));
    let waiting = async move { assert_eq!(watch.changed().await, Ok(path("data/x"))) };
    let writing = async { store.write("data/x", "1").await.expect("write") };
    run_all(store, &mut fake, vec![Box::pin(waiting) as Pin<Box<dyn Future<Output = ()> + '_>>, Box::pin(writing)]);
}

#[test]
fn a_flood_is_coalesced() {
    let (store, mut fake) = fake::pair(0);
    let mut watch = block_on(&store, &mut fake, store.watch("data", "t")).expect("watch");
    assert_eq!(block_on(&store, &mut fake, watch.changed()), Ok(path("data")));
    let rounds = if cfg!(miri) { 12 } else { 300 };
    for round in 0..rounds {
        fake.set(&format!("data/{}", round % 3), b"");
    }
    settle(&store, &mut fake);
    for n in 0..3 {
        assert_eq!(block_on(&store, &mut fake, watch.changed()), Ok(path(&format!("data/{n}"))));
    }
    assert!(try_block_on(&store, &mut fake, watch.changed()).is_none());
    for round in 0..QUEUE_MAX + 1 {
        fake.set(&format!("data/{round}"), b"");
    }
    settle(&store, &mut fake);
    assert_eq!(block_on(&store, &mut fake, watch.changed()), Ok(Change::Everything));
    assert!(try_block_on(&store, &mut fake, watch.changed()).is_none());
    assert_eq!(store.counters().events, 1 + rounds + QUEUE_MAX as u64 + 1);
}

#[test]
fn an_event_that_was_too_long_makes_everybody_read() {
    let (store, mut fake) = fake::pair(0);
    let mut watch = block_on(&store, &mut fake, store.watch("data", "t")).expect("watch");
    assert_eq!(block_on(&store, &mut fake, watch.changed()), Ok(path("data")));
    fake.say_message(Kind::WatchEvent.raw(), 0, &[b'x'; 5000]);
    assert_eq!(block_on(&store, &mut fake, watch.changed()), Ok(Change::Everything));
    let counters = store.counters();
    assert_eq!(counters.oddities, 1);
    assert_eq!(counters.last_oddity, Some(Oddity::TooLong { kind: Kind::WatchEvent.raw(), len: 5000 }));
}

#[test]
fn two_watches_on_one_path_are_two() {
    let (store, mut fake) = fake::pair(0);
    let mut first = block_on(&store, &mut fake, store.watch("data", "t")).expect("watch");
    let mut second = block_on(&store, &mut fake, store.watch("data", "t")).expect("watch");
    assert_eq!(fake.watches().len(), 2);
    assert_eq!(block_on(&store, &mut fake, first.changed()), Ok(path("data")));
    assert_eq!(block_on(&store, &mut fake, second.changed()), Ok(path("data")));
    drop(first);
    fake.set("data", b"");
    assert_eq!(block_on(&store, &mut fake, second.changed()), Ok(path("data")));
    assert_eq!(fake.watches(), [("data".into(), "t#1".into())]);
}

#[test]
fn unwatch_and_drop_take_it_back() {
    let (store, mut fake) = fake::pair(0);
    let first = block_on(&store, &mut fake, store.watch("a", "t")).expect("watch");
    let second = block_on(&store, &mut fake, store.watch("b", "t")).expect("watch");
    assert_eq!(block_on(&store, &mut fake, first.unwatch()), Ok(()));
    assert_eq!(fake.watches().len(), 1);
    drop(second);
    settle(&store, &mut fake);
    assert!(fake.watches().is_empty());
    assert!(store.holds_no_request());
    // Not even a stray event is a surprise.
    fake.say_message(Kind::WatchEvent.raw(), 0, b"b\0t#1\0");
    settle(&store, &mut fake);
    assert_eq!((store.counters().events_stray, store.counters().oddities), (1, 0));
}

#[test]
fn a_refused_watch_is_an_error_and_is_not_there() {
    let (store, mut fake) = fake::pair(0);
    fake.twists.push_back(Twist::Error("EQUOTA"));
    let error = block_on(&store, &mut fake, store.watch("a", "t")).expect_err("twisted");
    assert_eq!(error.to_string(), "xenstore watch a: EQUOTA");
    assert_eq!(
        block_on(&store, &mut fake, store.watch("", "t")).expect_err("refused").cause,
        Cause::Refused(Refusal::Empty)
    );
    let watch = block_on(&store, &mut fake, store.watch("a", "t")).expect("watch");
    fake.twists.push_back(Twist::Error("ENOENT"));
    assert!(block_on(&store, &mut fake, watch.unwatch()).expect_err("twisted").is(Errno::ENOENT));
    assert_eq!(fake.watches().len(), 1, "the fake did not carry it out");
}

/// Dropped after every possible number of steps, `watch` leaves no watch behind.
#[test]
fn dropped_at_any_point_it_is_not_there() {
    let mut sent = 0;
    for polls in (1..30).step_by(if cfg!(miri) { 6 } else { 1 }) {
        let (store, mut fake) = fake::pair(3);
        fake.chunk = 5;
        {
            let mut future = pin!(store.watch("data/some/path", "t"));
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
        assert!(fake.watches().is_empty(), "after {polls} steps");
        assert!(store.holds_no_request(), "after {polls} steps");
        assert_eq!(block_on(&store, &mut fake, store.reset_watches()), Ok(false), "after {polls} steps");
        sent += usize::from(fake.log().contains(&Kind::Unwatch));
    }
    assert!(sent > 0, "some were taken back");
}

#[test]
fn an_unwatch_that_is_dropped_is_sent_all_the_same() {
    let (store, mut fake) = fake::pair(0);
    let watch = block_on(&store, &mut fake, store.watch("a", "t")).expect("watch");
    {
        let mut future = pin!(watch.unwatch());
        assert!(poll_once(future.as_mut()).is_pending());
    }
    settle(&store, &mut fake);
    assert!(fake.watches().is_empty());
    assert!(store.holds_no_request());
}

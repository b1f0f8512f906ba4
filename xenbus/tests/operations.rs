//! Single operations against the fake: every kind, every cut, every way of xenstored to answer wrongly, and futures that
//! are dropped half way.
#![cfg(not(loom))]

use std::pin::{Pin, pin};
use xen_sys::Errno;
use xenbus::fake::{self, Twist, block_on, poll_once, run_all, settle, try_block_on};
use xenbus::wire::Kind;
use xenbus::{Cause, LATE_MAX, Oddity, Refusal, RingFault, SENT_MAX, TRANSACTIONS_MAX};

type Boxed<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

#[test]
fn every_operation_survives_every_cut_and_every_start() {
    let chunks: &[usize] = if cfg!(miri) { &[17] } else { &[1, 2, 3, 7, 15, 16, 17, 1023, 4096] };
    for &chunk in chunks {
        let starts: &[u32] = if cfg!(miri) { &[u32::MAX - 20] } else { &[0, 1000, u32::MAX - 20] };
        for &start in starts {
            let (store, mut fake) = fake::pair(start);
            fake.chunk = chunk;
            let value = "v".repeat(if cfg!(miri) { 50 } else { 1500 });
            block_on(&store, &mut fake, async {
                store.write("data/a/b", &value).await.expect("write");
                assert_eq!(store.read("data/a/b").await.expect("read"), value);
                assert_eq!(store.read("/local/domain/7/data/a/b").await.expect("read"), value);
                store.mkdir("data/a/c").await.expect("mkdir");
                assert_eq!(store.read("data/a/c").await.expect("read"), "");
                let mut names = store.directory("data/a").await.expect("directory");
                names.sort();
                assert_eq!(names, ["b", "c"]);
                assert!(store.directory("data/a/c").await.expect("directory").is_empty());
                store.rm("data/a").await.expect("rm");
                let error = store.read("data/a/b").await.expect_err("it is gone");
                assert!(error.is(Errno::ENOENT), "{error}");
                assert_eq!((error.op, &error.object[..]), (Kind::Read, "data/a/b"));
                assert_eq!(store.get_domain_path(12).await.expect("path"), "/local/domain/12");
            });
            let counters = store.counters();
            assert_eq!((counters.requests, counters.replies, counters.oddities), (10, 10, 0));
            assert!(store.holds_no_request());
        }
    }
}

#[test]
fn what_would_end_the_connection_is_not_sent() {
    let (store, mut fake) = fake::pair(0);
    block_on(&store, &mut fake, async {
        let refusal = async |path: &str, value: &str| store.write(path, value).await.map_err(|error| error.cause);
        assert_eq!(refusal("", "").await, Err(Cause::Refused(Refusal::Empty)));
        assert_eq!(refusal("a\0b", "").await, Err(Cause::Refused(Refusal::Nul)));
        assert_eq!(refusal("a", &"x".repeat(4095)).await, Err(Cause::Refused(Refusal::TooLong { len: 4097 })));
        assert_eq!(refusal("a", &"x".repeat(4094)).await, Ok(()));
    });
    assert_eq!(fake.requests(), 1);
}

#[test]
fn errors_come_by_name_also_unlisted_ones() {
    let (store, mut fake) = fake::pair(0);
    fake.twists.extend([Twist::Error("EQUOTA"), Twist::Error("EACCES"), Twist::Error("")]);
    block_on(&store, &mut fake, async {
        let error = store.write("data/x", "1").await.expect_err("twisted");
        assert_eq!(error.to_string(), "xenstore write data/x: EQUOTA");
        assert!(store.mkdir("data/x").await.expect_err("twisted").is(Errno::EACCES));
        assert!(matches!(store.rm("data/x").await.expect_err("twisted").cause, Cause::Unlisted(_)));
        store.write("data/x", "1").await.expect("honest again");
    });
}

#[test]
fn wrong_answers_are_survived_counted_and_named() {
    let (store, mut fake) = fake::pair(0);
    fake.set("a", b"1");
    fake.twists.extend([Twist::Long(4097), Twist::Type(77), Twist::Twice, Twist::AfterEvent]);
    block_on(&store, &mut fake, async {
        assert_eq!(store.read("a").await.expect_err("twisted").cause, Cause::TooLong { len: 4097 });
        assert_eq!(store.counters().last_oddity, Some(Oddity::TooLong { kind: 2, len: 4097 }));
        assert_eq!(store.read("a").await.expect_err("twisted").cause, Cause::WrongType { kind: 77 });
        assert_eq!(store.counters().last_oddity, Some(Oddity::WrongType { asked: Kind::Read, kind: 77 }));
        assert_eq!(store.read("a").await.expect("once is enough"), "1");
        assert_eq!(store.read("a").await.expect("after an event"), "1");
    });
    settle(&store, &mut fake);
    let counters = store.counters();
    assert_eq!((counters.oddities, counters.events_stray), (3, 1));
    assert_eq!(counters.last_oddity, Some(Oddity::UnknownId { kind: 2, req_id: 3 }));

    // Unasked for: a reply to nobody, one with the id of events, an event without a token.
    fake.say_message(Kind::Write.raw(), 0xdead, b"OK\0");
    fake.say_message(Kind::Error.raw(), 0, b"EINVAL\0");
    fake.say_message(Kind::WatchEvent.raw(), 0, b"path");
    settle(&store, &mut fake);
    assert_eq!(store.counters().oddities, 6);
    assert!(matches!(store.counters().last_oddity, Some(Oddity::MalformedEvent(text)) if text.as_bytes() == b"path"));
    assert_eq!(block_on(&store, &mut fake, store.read("a")).expect("still there"), "1");
}

#[test]
fn an_answer_with_another_id_leaves_its_request_waiting_alone() {
    let (store, mut fake) = fake::pair(0);
    fake.set("a", b"1");
    fake.twists.push_back(Twist::Id(999));
    assert!(try_block_on(&store, &mut fake, store.read("a")).is_none(), "nothing has answered it");
    assert_eq!(store.counters().last_oddity, Some(Oddity::UnknownId { kind: 2, req_id: 999 }));
    assert_eq!(block_on(&store, &mut fake, store.read("a")).expect("a later one is answered"), "1");
}

#[test]
fn malformed_payloads_are_errors() {
    let (store, mut fake) = fake::pair(0);
    let bad = |bytes: &[u8]| Twist::Payload(bytes.to_vec());
    fake.twists.extend([bad(b"\xff"), bad(b"a\0b"), bad(b"no-nul"), bad(b"0\0"), bad(b"seven\0")]);
    block_on(&store, &mut fake, async {
        let malformed = |cause| matches!(cause, Cause::Malformed(_));
        assert!(malformed(store.read("a").await.expect_err("twisted").cause));
        assert!(malformed(store.read("a").await.expect_err("twisted").cause));
        assert!(malformed(store.directory("a").await.expect_err("twisted").cause));
        for _ in 0..2 {
            let error = store.transaction(async |_| Ok(())).await.expect_err("twisted");
            assert!(malformed(error.cause));
            assert_eq!(error.op, Kind::TransactionStart);
        }
    });
}

#[test]
fn long_directories_come_in_parts() {
    let (store, mut fake) = fake::pair(0);
    let (count, width) = if cfg!(miri) { (10, 500) } else { (700, 90) };
    let mut expected: Vec<String> = (0..count).map(|n| format!("{n:0>width$}")).collect();
    for name in &expected {
        fake.set(&format!("many/{name}"), b"");
    }
    let mut names = block_on(&store, &mut fake, store.directory("many")).expect("directory");
    names.sort();
    expected.sort();
    assert_eq!(names, expected);
    assert!(fake.log().contains(&Kind::DirectoryPart));
}

#[test]
fn a_directory_that_changes_between_parts_is_read_again() {
    let (store, mut fake) = fake::pair(0);
    let part = |bytes: &[u8]| Twist::Payload(bytes.to_vec());
    fake.set("d", b"");
    fake.twists.extend([
        Twist::Error("E2BIG"),
        part(b"1\0a\0b\0"),
        part(b"2\0c\0\0"),
        part(b"2\0x\0"),
        part(b"2\0y\0\0"),
    ]);
    assert_eq!(block_on(&store, &mut fake, store.directory("d")).expect("directory"), ["x", "y"]);
    if cfg!(miri) {
        return;
    }
    // One that never ends is given up.
    fake.twists.push_back(Twist::Error("E2BIG"));
    fake.twists.extend((0..300).map(|_| part(b"1\0a\0")));
    let error = block_on(&store, &mut fake, store.directory("d")).expect_err("no end");
    assert_eq!((error.op, error.cause), (Kind::DirectoryPart, Cause::Malformed("list without an end")));
}

#[test]
fn answers_out_of_order_find_their_requests_and_few_are_out_at_a_time() {
    let (store, mut fake) = fake::pair(0);
    fake.reorder = 100;
    let count = if cfg!(miri) { 12 } else { 40 };
    for n in 0..count {
        fake.set(&format!("n/{n}"), n.to_string().as_bytes());
    }
    let store = &store;
    let reads = (0..count).map(|n| {
        Box::pin(async move {
            assert_eq!(store.read(&format!("n/{n}")).await.expect("read"), n.to_string());
        }) as Boxed<'_>
    });
    run_all(store, &mut fake, reads.collect());
    assert_eq!(fake.most_open(), SENT_MAX);
    assert_eq!((store.counters().replies, store.counters().oddities), (count, 0));
}

#[test]
fn a_dropped_request_leaves_nothing_behind() {
    let (store, mut fake) = fake::pair(0);
    fake.set("a", b"1");
    // Not sent: taken back.
    {
        let mut read = pin!(store.read("a"));
        assert!(poll_once(read.as_mut()).is_pending());
    }
    settle(&store, &mut fake);
    assert_eq!(fake.requests(), 0);
    // Sent: its reply is thrown away.
    {
        fake.mute = true;
        let mut read = pin!(store.read("a"));
        assert!(poll_once(read.as_mut()).is_pending());
        settle(&store, &mut fake);
    }
    assert!(!store.holds_no_request());
    fake.mute = false;
    fake.say(&[]);
    settle(&store, &mut fake);
    assert_eq!((fake.requests(), store.counters().replies, store.counters().oddities), (1, 1, 0));
    assert!(store.holds_no_request());
}

#[test]
fn a_request_dropped_in_the_middle_of_the_ring_is_sent_to_its_end() {
    let (store, mut fake) = fake::pair(0);
    fake.mute = true;
    {
        let long = "x".repeat(3000);
        let mut write = pin!(store.write("a", &long));
        assert!(poll_once(write.as_mut()).is_pending());
        settle(&store, &mut fake);
    }
    fake.mute = false;
    fake.say(&[]);
    assert_eq!(block_on(&store, &mut fake, store.read("a")).expect("in step").len(), 3000);
    assert!(store.holds_no_request());
}

#[test]
fn an_answer_that_never_comes_costs_only_who_waits_for_it() {
    let (store, mut fake) = fake::pair(0);
    fake.set("a", b"1");
    fake.twists.extend((0..2 * SENT_MAX).map(|_| Twist::Never));
    for _ in 0..2 * SENT_MAX {
        assert!(try_block_on(&store, &mut fake, store.read("a")).is_none());
    }
    assert_eq!(block_on(&store, &mut fake, store.read("a")).expect("the others are given up"), "1");
    let diagnosis = store.diagnosis().expect("not in use");
    assert_eq!((diagnosis.awaited, diagnosis.late), (0, 2 * SENT_MAX));
}

#[test]
fn those_that_are_waited_for_take_their_places() {
    let (store, mut fake) = fake::pair(0);
    fake.set("a", b"1");
    fake.twists.extend((0..SENT_MAX).map(|_| Twist::Never));
    let mut waiting: Vec<_> = (0..SENT_MAX).map(|_| Box::pin(store.read("a"))).collect();
    for read in &mut waiting {
        assert!(try_block_on(&store, &mut fake, read.as_mut()).is_none());
    }
    let mut next = pin!(store.read("a"));
    assert!(try_block_on(&store, &mut fake, next.as_mut()).is_none(), "no more are sent");
    assert_eq!(fake.requests(), SENT_MAX);
    drop(waiting.pop());
    assert_eq!(block_on(&store, &mut fake, next).expect("a place is free"), "1");
}

/// Whatever is lost, and however often: the next transaction, watch and reset work.
#[test]
fn lost_answers_do_not_wear_the_store_out() {
    let (store, mut fake) = fake::pair(0);
    fake.set("control/platform-feature-xs_reset_watches", b"1");
    for _ in 0..if cfg!(miri) { 3 } else { 2 * TRANSACTIONS_MAX } {
        // To START, and to END.
        for before in 0..2 {
            fake.twists.extend((0..before).map(|_| Twist::Honest));
            fake.twists.push_back(Twist::Never);
            assert!(try_block_on(&store, &mut fake, store.transaction(async |_| Ok(()))).is_none());
        }
        // To the END of one that is given up.
        fake.twists.extend([Twist::Honest, Twist::Error("EIO"), Twist::Never]);
        let failing = store.transaction(async |tx| tx.read("a").await);
        assert!(block_on(&store, &mut fake, failing).expect_err("twisted").is(Errno::EIO));
        settle(&store, &mut fake);
        // To UNWATCH, and to WATCH.
        let watch = block_on(&store, &mut fake, store.watch("a", "t")).expect("watch");
        fake.twists.extend([Twist::Never, Twist::Never]);
        drop(watch);
        assert!(try_block_on(&store, &mut fake, store.watch("a", "t")).is_none());
    }
    assert!(fake.twists.is_empty());
    assert_eq!(block_on(&store, &mut fake, store.transaction(async |_| Ok(()))), Ok(()));
    assert_eq!(block_on(&store, &mut fake, store.reset_watches()), Ok(true), "nobody wants what is left");
    assert!(block_on(&store, &mut fake, store.quiesce()).is_ok());
    assert_eq!(store.counters().oddities, 0);
}

#[test]
fn a_late_start_is_aborted_when_its_answer_comes() {
    let (store, mut fake) = fake::pair(0);
    for round in 1..=if cfg!(miri) { 3 } else { 2 * TRANSACTIONS_MAX } {
        // Held back until the future is gone.
        fake.mute = true;
        assert!(try_block_on(&store, &mut fake, store.transaction(async |_| Ok(()))).is_none());
        fake.mute = false;
        fake.say(&[]);
        settle(&store, &mut fake);
        assert_eq!((fake.requests(), fake.open_transactions()), (2 * round, 0));
    }
    assert!(store.holds_no_request());
    assert!(block_on(&store, &mut fake, store.quiesce()).is_ok());
    assert_eq!(block_on(&store, &mut fake, store.transaction(async |_| Ok(()))), Ok(()));
}

#[test]
#[cfg_attr(miri, ignore = "takes more than LATE_MAX requests, which is long there")]
fn of_too_many_late_requests_the_oldest_is_forgotten_and_named() {
    let (store, mut fake) = fake::pair(0);
    let (extra, all) = (3, LATE_MAX + 3);
    fake.twists.extend((0..all).map(|_| Twist::Never));
    for _ in 0..all {
        assert!(try_block_on(&store, &mut fake, store.read("a")).is_none());
    }
    assert!(block_on(&store, &mut fake, store.read("a")).is_err());
    let diagnosis = store.diagnosis().expect("not in use");
    assert_eq!((diagnosis.late, diagnosis.counters.oddities), (LATE_MAX, extra));
    assert_eq!(diagnosis.counters.last_oddity, Some(Oddity::Unanswered { asked: Kind::Read }));
    // The first is a stranger now, the last is known.
    for (req_id, oddities) in [(1, extra + 1), (u32::try_from(all).expect("small"), extra + 1)] {
        fake.say_message(Kind::Read.raw(), req_id, b"1");
        settle(&store, &mut fake);
        assert_eq!(store.counters().oddities, oddities, "reply to {req_id}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes more than LATE_MAX requests, which is long there")]
fn a_watch_that_nobody_wants_is_forgotten_with_its_request() {
    let (store, mut fake) = fake::pair(0);
    fake.twists.extend((0..LATE_MAX + 3).map(|_| Twist::Never));
    for _ in 0..LATE_MAX + 3 {
        assert!(try_block_on(&store, &mut fake, store.watch("a", "t")).is_none());
    }
    assert!(block_on(&store, &mut fake, store.read("a")).is_err());
    assert_eq!(store.watches_held(), LATE_MAX);
}

#[test]
fn a_broken_ring_is_an_error_for_all_and_named() {
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    let (store, mut fake) = fake::pair(0);
    fake.twists.push_back(Twist::Never);
    let mut watch = None;
    let mut read = pin!(store.read("a"));
    assert!(try_block_on(&store, &mut fake, read.as_mut()).is_none());
    block_on(&store, &mut fake, async { watch = Some(store.watch("a", "t").await.expect("watch")) });
    let mut watch = watch.expect("just set");
    fake.page().rsp_prod.store(5000, relaxed);
    store.on_event();
    settle(&store, &mut fake);
    let fault = store.fault().expect("found");
    assert!(matches!(fault, RingFault::ReplyIndices { prod: 5000, .. }));
    block_on(&store, &mut fake, async {
        assert_eq!(read.await.expect_err("broken").cause, Cause::RingBroken(fault));
        let error = store.read("a").await.expect_err("broken");
        assert_eq!(error.cause, Cause::RingBroken(fault));
        assert!(error.to_string().contains("xenstore ring broken: reply ring indices"), "{error}");
        assert_eq!(watch.changed().await.expect_err("broken").cause, Cause::RingBroken(fault));
        assert_eq!(store.transaction(async |_| Ok(())).await.expect_err("broken").cause, Cause::RingBroken(fault));
    });
    assert_eq!(store.counters().faults, 1);
}

#[test]
fn a_xenstored_that_hangs_up_is_noticed() {
    let (store, mut fake) = fake::pair(0);
    fake.page().error.store(3, std::sync::atomic::Ordering::Relaxed);
    let error = block_on(&store, &mut fake, store.read("a")).expect_err("hung up");
    assert_eq!(error.cause, Cause::RingBroken(RingFault::HungUp { error: 3 }));
}

#[test]
fn nothing_is_sent_while_xenstored_resets_the_ring() {
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    let (store, mut fake) = fake::pair(0);
    fake.set("a", b"1");
    fake.page().connection.store(1, relaxed);
    let mut read = pin!(store.read("a"));
    assert!(try_block_on(&store, &mut fake, read.as_mut()).is_none());
    assert_eq!(fake.page().req_prod.load(relaxed), 0);
    fake.page().connection.store(0, relaxed);
    assert_eq!(block_on(&store, &mut fake, read).expect("read"), "1");
}

#[test]
fn watches_are_reset_only_where_that_is_offered() {
    let (store, mut fake) = fake::pair(0);
    assert!(!block_on(&store, &mut fake, store.reset_watches()).expect("not offered"));
    assert_eq!(fake.log(), [Kind::Read]);
    fake.set("control/platform-feature-xs_reset_watches", b"1");
    assert!(block_on(&store, &mut fake, store.reset_watches()).expect("offered"));
    let watch = block_on(&store, &mut fake, store.watch("a", "t")).expect("watch");
    let error = block_on(&store, &mut fake, store.reset_watches()).expect_err("in use");
    assert_eq!(error.cause, Cause::Refused(Refusal::InUse));
    drop(watch);
}

//! The table alone, without a connection.

use super::*;
use crate::error::RingFault;
use alloc::vec;

fn live(table: &mut WatchTable, path: &str) -> WatchId {
    let (id, _) = table.add(path, "t");
    table.sent(id);
    assert_eq!(table.answered(id, Ok(()), &mut vec![]), None);
    id
}

fn poll(table: &mut WatchTable, id: WatchId) -> Poll<Result<Change, Cause>> {
    table.poll(id, Waker::noop()).0
}

fn taken(delivery: Delivery) -> bool {
    matches!(delivery, Delivery::Taken(_))
}

const BROKEN: Cause = Cause::RingBroken(RingFault::HungUp { error: 3 });

#[test]
fn changes_are_kept_once_per_path_and_in_order() {
    let mut table = WatchTable::default();
    let id = live(&mut table, "a");
    for path in ["a/1", "a/2", "a/1", "a/2"] {
        assert!(taken(table.event(path.as_bytes(), b"t#0")));
    }
    assert_eq!(poll(&mut table, id), Poll::Ready(Ok(Change::Path("a/1".into()))));
    assert_eq!(poll(&mut table, id), Poll::Ready(Ok(Change::Path("a/2".into()))));
    assert_eq!(poll(&mut table, id), Poll::Pending);
}

#[test]
fn one_change_too_many_is_everything() {
    let mut table = WatchTable::default();
    let id = live(&mut table, "a");
    for n in 0..=QUEUE_MAX + 5 {
        assert!(taken(table.event(format!("a/{n}").as_bytes(), b"t#0")));
    }
    assert_eq!(poll(&mut table, id), Poll::Ready(Ok(Change::Everything)));
    assert_eq!(poll(&mut table, id), Poll::Pending);
    assert!(taken(table.event(b"\xff", b"t#0")));
    assert_eq!(poll(&mut table, id), Poll::Ready(Ok(Change::Everything)));
}

#[test]
fn events_reach_only_their_watch_while_it_is_there() {
    let mut table = WatchTable::default();
    let (id, payload) = table.add("a", "t");
    assert_eq!(payload, b"a\0t#0\0");
    assert!(!taken(table.event(b"a", b"t#0")), "not asked for yet");
    table.sent(id);
    assert!(taken(table.event(b"a", b"t#0")), "before its own reply");
    assert!(!taken(table.event(b"a", b"t#1")));
    assert_eq!(table.answered(id, Ok(()), &mut vec![]), None);
    assert_eq!(table.remove(id).0, Some(b"a\0t#0\0".to_vec()));
    assert!(!taken(table.event(b"a", b"t#0")));
    assert!(table.entries.is_empty());
}

#[test]
fn a_handle_dropped_while_asking_unwatches_after_the_answer() {
    let mut table = WatchTable::default();
    for (outcome, unwatch) in [(Ok(()), true), (Err(Cause::Lost), false)] {
        let (id, payload) = table.add("a", "t");
        table.sent(id);
        assert_eq!(table.remove(id).0, None);
        assert_eq!(table.answered(id, outcome, &mut vec![]), unwatch.then_some(payload));
        assert!(table.entries.is_empty());
    }
    let (id, _) = table.add("a", "t");
    assert_eq!(table.remove(id).0, None);
    assert!(table.entries.is_empty(), "never sent");
}

#[test]
fn a_restore_asks_for_each_again_and_fires_each() {
    let mut table = WatchTable::default();
    let (first, second) = (live(&mut table, "a"), live(&mut table, "b"));
    assert!(taken(table.event(b"a", b"t#0")));
    table.lose_all();
    assert!(table.has_lost());
    assert_eq!(table.next_lost(), Some((first, b"a\0t#0\0".to_vec())));
    assert_eq!(table.next_lost(), Some((second, b"b\0t#1\0".to_vec())));
    assert_eq!(table.next_lost(), None);
    assert!(!table.has_lost());
    assert_eq!(poll(&mut table, first), Poll::Pending);
    assert_eq!(table.answered(first, Ok(()), &mut vec![]), None);
    assert_eq!(table.answered(second, Err(Cause::Lost), &mut vec![]), None);
    assert_eq!(poll(&mut table, first), Poll::Ready(Ok(Change::Everything)));
    assert_eq!(poll(&mut table, first), Poll::Pending);
    assert_eq!(poll(&mut table, second), Poll::Ready(Err(Cause::Lost)));
    table.lose_all();
    assert_eq!(table.next_lost().map(|(id, _)| id), Some(first));
    assert_eq!(table.next_lost().map(|(id, _)| id), Some(second), "a failed one is tried again");
}

#[test]
fn a_watch_asked_for_again_works_without_its_answer() {
    for answer in [None, Some(Ok(())), Some(Err(Cause::Xen(Errno::EEXIST)))] {
        let mut table = WatchTable::default();
        let id = live(&mut table, "a");
        table.lose_all();
        assert_eq!(table.next_lost().map(|(id, _)| id), Some(id));
        assert!(taken(table.event(b"a", b"t#0")));
        assert_eq!(poll(&mut table, id), Poll::Ready(Ok(Change::Everything)));
        assert!(taken(table.event(b"a/1", b"t#0")));
        if let Some(outcome) = answer {
            assert_eq!(table.answered(id, outcome, &mut vec![]), None);
        }
        assert_eq!(poll(&mut table, id), Poll::Ready(Ok(Change::Path("a/1".into()))), "{answer:?}");
        assert_eq!(poll(&mut table, id), Poll::Pending);
    }
}

#[test]
fn one_that_nobody_wants_is_forgotten_with_its_request() {
    let mut table = WatchTable::default();
    let (wanted, _) = table.add("a", "t");
    let (unwanted, _) = table.add("a", "t");
    table.sent(wanted);
    table.sent(unwanted);
    assert_eq!(table.remove(unwanted).0, None);
    assert!(!table.has_none_wanted());
    table.forget(wanted);
    table.forget(unwanted);
    assert_eq!(table.entries.len(), 1);
    assert!(taken(table.event(b"a", b"t#0")));
}

#[test]
fn a_broken_ring_fails_them_until_a_restore() {
    let mut table = WatchTable::default();
    let id = live(&mut table, "a");
    table.fail_all(BROKEN, &mut vec![]);
    assert_eq!(poll(&mut table, id), Poll::Ready(Err(BROKEN)));
    assert_eq!(poll(&mut table, id), Poll::Ready(Err(BROKEN)));
    table.lose_all();
    assert_eq!(poll(&mut table, id), Poll::Pending);
}

#[test]
fn strings_are_checked_together() {
    use crate::error::Refusal;
    assert_eq!(check("a", "label"), Ok(()));
    assert_eq!(check("a", "la\0bel"), Err(Refusal::Nul));
    assert_eq!(check("", "label"), Err(Refusal::Empty));
    assert!(matches!(check("a", &"l".repeat(4096)), Err(Refusal::TooLong { .. })));
}

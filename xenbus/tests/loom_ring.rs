//! One direction of the ring with two slots and free-running indices about to wrap: every byte arrives once and in order,
//! through empty, full and wrapping. Each publishing ordering has a weakened copy that fails.
//!
//! Not modelled: that a slot is not overwritten before it has been read. That takes a load that is done after a later
//! store, and loom does the operations of a thread in program order; `ring.rs` argues it. Nor the wake-ups: the
//! pump's waker is not built from the switchable atomics (`store.rs` says why it serves).
#![cfg(loom)]

use loom::sync::Arc;
use loom::thread;
use std::sync::atomic::AtomicUsize;
use xen_sys::primitive::sync::atomic::Ordering::{self, Acquire, Relaxed, Release};
use xen_sys::primitive::sync::atomic::{AtomicU8, AtomicU32};
use xenbus::ring::Half;

const START: u32 = u32::MAX;
/// How often each side tries: once empty or full, and once more.
const LOOKS: usize = 2;

struct Page {
    bytes: [AtomicU8; 2],
    cons: AtomicU32,
    prod: AtomicU32,
}

impl Page {
    fn half(&self) -> Half<'_> {
        Half::new(&self.bytes, &self.cons, &self.prod)
    }
}

/// Runs both sides in every order; returns how many orders there were.
///
/// Each side has a thread of its own: with the model's main thread as one of them, loom 0.7 explored a single order.
fn model(
    put: impl Fn(&Page, &[u8]) -> usize + Copy + Send + Sync + 'static,
    take: impl Fn(&Page, &mut [u8]) -> usize + Copy + Send + Sync + 'static,
) -> usize {
    // Not loom's: it counts across the executions of the model.
    let orders = std::sync::Arc::new(AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&orders);
    loom::model(move || {
        // ORDERING: Relaxed, statistic only.
        count.fetch_add(1, Relaxed);
        let page = Arc::new(Page {
            bytes: [AtomicU8::new(0), AtomicU8::new(0)],
            cons: AtomicU32::new(START),
            prod: AtomicU32::new(START),
        });
        let sides = [
            thread::spawn({
                let page = Arc::clone(&page);
                move || produce(|bytes| put(&page, bytes))
            }),
            thread::spawn({
                let page = Arc::clone(&page);
                move || consume(|bytes| take(&page, bytes))
            }),
        ];
        for side in sides {
            side.join().expect("a side failed");
        }
        assert!(page.half().is_empty().is_ok());
    });
    // ORDERING: Relaxed, as above.
    orders.load(Relaxed)
}

/// Takes with `take` a few times, and checks what comes. Without `yield_now`: after it loom shows only new values.
fn consume(mut take: impl FnMut(&mut [u8]) -> usize) {
    let mut got = vec![];
    for _ in 0..LOOKS {
        let mut bytes = [0; 2];
        let count = take(&mut bytes);
        got.extend(&bytes[..count]);
        assert!([1, 2, 3].starts_with(&got), "stale bytes: {got:?}");
    }
}

/// Puts three bytes, of which only two fit at a time, as far as it gets in a few tries.
fn produce(mut put: impl FnMut(&[u8]) -> usize) {
    let mut rest = &[1, 2, 3][..];
    for _ in 0..LOOKS {
        let count = put(rest);
        rest = &rest[count..];
    }
}

/// `Half::put`, with the ordering of its publication to choose.
fn put_copy(page: &Page, from: &[u8], publish: Ordering) -> usize {
    let (cons, prod) = (page.cons.load(Acquire), page.prod.load(Relaxed));
    let count = from.len().min(2 - prod.wrapping_sub(cons) as usize);
    let mut index = prod;
    for &byte in &from[..count] {
        page.bytes[index as usize & 1].store(byte, Relaxed);
        index = index.wrapping_add(1);
    }
    if count > 0 {
        page.prod.store(index, publish);
    }
    count
}

/// `Half::take`, with the ordering of its look at `prod` to choose.
fn take_copy(page: &Page, into: &mut [u8], look: Ordering) -> usize {
    let (prod, cons) = (page.prod.load(look), page.cons.load(Relaxed));
    let count = into.len().min(prod.wrapping_sub(cons) as usize);
    let mut index = cons;
    for byte in &mut into[..count] {
        *byte = page.bytes[index as usize & 1].load(Relaxed);
        index = index.wrapping_add(1);
    }
    if count > 0 {
        page.cons.store(index, Release);
    }
    count
}

fn put(page: &Page, from: &[u8]) -> usize {
    page.half().put(from).expect("indices are sound")
}

fn take(page: &Page, into: &mut [u8]) -> usize {
    page.half().take(into).expect("indices are sound")
}

#[test]
fn every_byte_arrives_once_and_in_order() {
    let orders = model(put, take);
    assert!(orders > 50, "only {orders} orders explored");
}

#[test]
#[should_panic(expected = "stale bytes")]
fn a_weaker_publication_shows_stale_bytes() {
    model(|page, from| put_copy(page, from, Relaxed), take);
}

#[test]
#[should_panic(expected = "stale bytes")]
fn a_weaker_look_shows_stale_bytes() {
    model(put, |page, into| take_copy(page, into, Relaxed));
}

/// The copies, unweakened, pass: it is the ordering that fails above.
#[test]
fn the_copies_are_true() {
    model(|page, from| put_copy(page, from, Release), |page, into| take_copy(page, into, Acquire));
}

//! Taking what stands at a node: it is read and cleared in one transaction, so that what is answered is what was read, once.
//!
//! Twice to xenstored and back, since whoever waits for the answer waits for each. With the start of the transaction goes a look at the
//! node. Where that sees something, all else is sent at once: read, write and commit, which xenstored handles in this order. What the
//! read finds has been taken if the commit says so, and where it finds nothing any more, the write has emptied an empty node. Only that
//! is not done without having looked: every write to a node that is watched is heard of, our own too.
//!
//! Turned down: an answer to the write before the commit is sent; a write that fails leaves a transaction that changes nothing.
//! Write and commit with the start: they need the number that the start brings.

use alloc::vec::Vec;
use core::future::pending;

use futures_lite::future::{or, zip};
use xen_sys::Errno;
use xen_sys::primitive::sync::atomic::{AtomicBool, Ordering};

use crate::error::StoreError;
use crate::scope::{Open, Scope};
use crate::store::Store;

/// Takes what `parse` makes of the value at `node`, and leaves the node empty. `None`: there is nothing, or no node. Of an empty value
/// `parse` makes nothing.
///
/// `foresee` is shown what most likely will be taken, when there is an answer to the look. It may be shown nothing, and what is shown
/// may have been withdrawn or replaced before it is taken.
/// # Errors
/// As for a transaction, and what the write fails on. It then stands there still; except that, if there is no answer to the
/// commit or none that makes sense (`RingBroken`, `TooLong`, `WrongType`), nobody knows, and if none to the read that makes sense, it is
/// gone. The same holds if the future is dropped during the commit.
pub(crate) async fn take<T>(
    store: &Store,
    node: &str,
    parse: impl Fn(&[u8]) -> Option<T>,
    foresee: impl FnOnce(&T),
) -> Result<Option<T>, StoreError> {
    let (parse, seen) = (&parse, &AtomicBool::new(false));
    let look = async {
        if let Ok(value) = store.read_bytes(node).await
            && let Some(what) = parse(&value)
        {
            // ORDERING: Relaxed, read by the same task.
            seen.store(true, Ordering::Relaxed);
            foresee(&what);
        }
        // It is the transaction that ends this, whatever became of the look.
        pending().await
    };
    let taken = store.attempts(|open| async move {
        // ORDERING: Relaxed, as above.
        if seen.load(Ordering::Relaxed) {
            let (value, emptied) = zip(value_at(open.scope(), node), cleared(open, node)).await;
            emptied?;
            return Ok(parse(&value?));
        }
        let value = parse(&value_at(open.scope(), node).await?);
        if value.is_some() {
            cleared(open, node).await?;
        } else {
            open.commit().await?;
        }
        Ok(value)
    });
    or(look, taken).await
}

/// The value; a node that is not there is as good as an empty one.
async fn value_at(scope: Scope<'_>, node: &str) -> Result<Vec<u8>, StoreError> {
    let value = scope.read_bytes(node).await;
    value.or_else(|error| if error.is(Errno::ENOENT) { Ok(Vec::new()) } else { Err(error) })
}

/// Empties the node and commits, both sent before either is answered.
async fn cleared(open: Open<'_>, node: &str) -> Result<(), StoreError> {
    let scope = open.scope();
    let (written, committed) = zip(scope.write(node, ""), open.commit()).await;
    written.and(committed)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::cell::Cell;
    use core::pin::pin;
    use core::task::Poll;

    use super::*;
    use crate::fake::{self, Twist, block_on, poll_once, settle};
    use crate::wire;

    #[test]
    fn it_takes_twice_there_and_back() {
        let (store, mut fake) = fake::pair(0);
        fake.set("node", b"word");
        fake.chunk = 4096;
        let (times, foreseen_at) = (Cell::new(0), Cell::new(None));
        let foresee = |_: &usize| foreseen_at.set(Some(times.get()));
        let mut taken = pin!(take(&store, "node", |value| Some(value.len()), foresee));
        let mut pump = pin!(store.pump());
        let outcome = loop {
            if let Poll::Ready(outcome) = poll_once(taken.as_mut()) {
                break outcome;
            }
            assert!(poll_once(pump.as_mut()).is_pending());
            fake.step();
            assert!(poll_once(pump.as_mut()).is_pending());
            times.set(times.get() + 1);
        };
        assert_eq!((outcome, times.get(), foreseen_at.get()), (Ok(Some(4)), 2, Some(1)));
        assert_eq!(fake.value("node"), Some(&b""[..]));
    }

    #[test]
    fn an_answer_without_sense_is_told_and_does_not_come_again() {
        let (store, mut fake) = fake::pair(0);
        fake.set("node", b"word");
        fake.twists.extend([Twist::Honest, Twist::Honest, Twist::Long(wire::PAYLOAD_MAX + 1)]);
        let taken = block_on(&store, &mut fake, take(&store, "node", |value| Some(value.len()), |_| ()));
        assert!(taken.is_err(), "{taken:?}");
        settle(&store, &mut fake);
        assert_eq!(fake.value("node"), Some(&b""[..]));
    }

    #[test]
    fn what_comes_between_look_and_transaction_is_taken_and_cleared() {
        let (store, mut fake) = fake::pair(0);
        // The look finds no node.
        fake.twists.push_back(Twist::Error("ENOENT"));
        fake.set("node", b"word");
        let mut foreseen = None;
        let taken = take(&store, "node", |value| Some(value.len()), |len| foreseen = Some(*len));
        assert_eq!(block_on(&store, &mut fake, taken), Ok(Some(4)));
        assert_eq!((foreseen, fake.value("node")), (None, Some(&b""[..])));
    }
}

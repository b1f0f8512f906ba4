//! Taking what stands at a node: it is read and cleared in one transaction, so that what is answered is what was read, once.
//!
//! Twice to xenstored and back, since whoever waits for the answer waits for each. With the start of the transaction goes a look at the
//! node. Where that sees something, all else is sent at once: read, write and commit, which xenstored handles in this order. What the
//! read finds has been taken if the commit says so, and where it finds nothing any more, the write has emptied an empty node. Only that
//! is not done without having looked: every write to a node that is watched is heard of, our own too.
//!
//! Once is enough where somebody else is known to have written there ([`take_at_once`]): then the start goes with the rest, and the number
//! that it will bring is guessed. Not without that knowledge, since our own write to an empty node would be heard of, and be followed by
//! another.
//!
//! Turned down: an answer to the write before the commit is sent; a write that fails leaves a transaction that changes nothing.
//! A transaction that is kept open for the next request: it would keep xenstored from being updated live.

use alloc::vec::Vec;
use core::future::pending;

use futures_lite::future::{or, zip};
use xen_sys::Errno;
use xen_sys::primitive::sync::atomic::{AtomicBool, Ordering};

use crate::error::StoreError;
use crate::scope::{Guess, Open, Scope};
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

/// The same in one time there and back, and without having looked: the node is written to also where it is empty. `None`: that did not come
/// off, nothing is taken, and [`take`] is to be used. `begun` is called when it is tried.
/// # Errors
/// As for a transaction. If the read is refused, what stood there is gone; if the commit fails otherwise than by a conflict, nobody knows.
pub(crate) async fn take_at_once<T>(
    store: &Store,
    node: &str,
    parse: impl Fn(&[u8]) -> Option<T>,
    begun: impl FnOnce(),
) -> Option<Result<Option<T>, StoreError>> {
    let guess = Guess::start(store)?;
    begun();
    let scope = guess.scope();
    let (value, emptied) = match guess.commit(zip(value_at(scope, node), scope.write(node, ""))).await? {
        Ok(answers) => answers,
        Err(error) => return Some(Err(error)),
    };
    Some(match value.map(|value| parse(&value)) {
        // There was nothing to be emptied, and perhaps no node that we may write to.
        Ok(None) => Ok(None),
        taken => emptied.and(taken),
    })
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
    use alloc::boxed::Box;
    use core::cell::Cell;
    use core::pin::pin;
    use core::task::Poll;

    use xen_sys::hypercall::sched::SuspendOutcome;

    use super::*;
    use crate::fake::{self, Twist, block_on, poll_once, settle};
    use crate::wire;

    /// Runs `future` to its end, and counts each time to xenstored and back.
    fn there_and_back<T>(
        store: &Store,
        fake: &mut fake::Fake,
        times: &Cell<usize>,
        future: impl Future<Output = T>,
    ) -> T {
        let (mut future, mut pump) = (pin!(future), pin!(store.pump()));
        loop {
            if let Poll::Ready(outcome) = poll_once(future.as_mut()) {
                return outcome;
            }
            assert!(poll_once(pump.as_mut()).is_pending());
            fake.step();
            assert!(poll_once(pump.as_mut()).is_pending());
            times.set(times.get() + 1);
        }
    }

    #[test]
    fn it_takes_twice_there_and_back() {
        let (store, mut fake) = fake::pair(0);
        fake.set("node", b"word");
        fake.chunk = 4096;
        let (times, foreseen_at) = (Cell::new(0), Cell::new(None));
        let foresee = |_: &usize| foreseen_at.set(Some(times.get()));
        let taken = take(&store, "node", |value| Some(value.len()), foresee);
        let outcome = there_and_back(&store, &mut fake, &times, taken);
        assert_eq!((outcome, times.get(), foreseen_at.get()), (Ok(Some(4)), 2, Some(1)));
        assert_eq!(fake.value("node"), Some(&b""[..]));
    }

    type Outcome = Option<Result<Option<usize>, StoreError>>;

    fn at_once(store: &Store) -> impl Future<Output = Outcome> {
        take_at_once(store, "node", |value| (!value.is_empty()).then_some(value.len()), || ())
    }

    /// Times there and back until it is taken at once, and what came of it.
    fn taken_at_once(store: &Store, fake: &mut fake::Fake) -> (usize, Outcome) {
        let times = Cell::new(0);
        let outcome = there_and_back(store, fake, &times, at_once(store));
        (times.get(), outcome)
    }

    /// A store whose last transaction is known, and a word at the node.
    fn after_a_transaction() -> (Store, fake::Fake) {
        let (store, mut fake) = fake::pair(0);
        assert_eq!(block_on(&store, &mut fake, store.transaction(async |_| Ok(()))), Ok(()));
        fake.set("node", b"word");
        (store, fake)
    }

    /// Nothing is left open, there or in our accounts: a quiesce waits for nothing.
    fn assert_nothing_is_open(store: &Store, fake: &mut fake::Fake) {
        settle(store, fake);
        assert!(store.holds_no_request());
        assert_eq!(fake.open_transactions(), 0);
        let quiet = block_on(store, fake, store.quiesce()).expect("nobody else does");
        quiet.resume(SuspendOutcome::Continued);
    }

    #[test]
    fn what_is_known_to_be_there_takes_once() {
        let (store, mut fake) = fake::pair(0);
        assert_eq!(taken_at_once(&store, &mut fake), (0, None), "there was no transaction to guess from");
        let (store, mut fake) = after_a_transaction();
        for word in [&b"word"[..], b"", b"other"] {
            fake.set("node", word);
            let there = (!word.is_empty()).then_some(word.len());
            assert_eq!(taken_at_once(&store, &mut fake), (1, Some(Ok(there))));
            assert_eq!(fake.value("node"), Some(&b""[..]));
        }
        assert_eq!(fake.commits(), 4);
        assert_nothing_is_open(&store, &mut fake);
    }

    #[test]
    fn a_wrong_guess_takes_nothing_and_leaves_nothing() {
        let (store, mut fake) = after_a_transaction();
        fake.skip_transaction_ids(5);
        assert_eq!(taken_at_once(&store, &mut fake), (1, None));
        assert_nothing_is_open(&store, &mut fake);
        assert_eq!((fake.value("node"), fake.commits()), (Some(&b"word"[..]), 1));
        // oxenstored says EIO of a transaction that there is not.
        fake.skip_transaction_ids(5);
        fake.twists.push_back(Twist::Honest);
        fake.twists.extend([Twist::Error("EIO"), Twist::Error("EIO"), Twist::Error("EIO")]);
        assert_eq!(taken_at_once(&store, &mut fake), (1, None));
        assert_nothing_is_open(&store, &mut fake);
        assert_eq!(taken_at_once(&store, &mut fake), (1, Some(Ok(Some(4)))), "the next guess is right");
    }

    #[test]
    fn a_conflict_takes_nothing() {
        let (store, mut fake) = after_a_transaction();
        fake.intruders.push_back(("node".into(), b"withdrawn".to_vec()));
        assert_eq!(taken_at_once(&store, &mut fake), (1, None));
        assert_eq!(fake.value("node"), Some(&b"withdrawn"[..]));
        assert_nothing_is_open(&store, &mut fake);
    }

    #[test]
    fn each_of_its_requests_may_be_refused() {
        let (gone, stands) = (Some(&b""[..]), Some(&b"word"[..]));
        // START, READ, WRITE, END: whether it is an error, and what stands there then.
        for (refused, (is_error, there)) in
            [(false, stands), (true, gone), (true, stands), (true, stands)].iter().enumerate()
        {
            let (store, mut fake) = after_a_transaction();
            fake.twists.extend((0..refused).map(|_| Twist::Honest));
            fake.twists.push_back(Twist::Error("ENOSPC"));
            let (times, outcome) = taken_at_once(&store, &mut fake);
            assert_eq!((times, outcome.is_some_and(|taken| taken.is_err())), (1, *is_error), "{refused}");
            assert_eq!(fake.value("node"), *there, "{refused}");
            settle(&store, &mut fake);
            assert!(store.holds_no_request());
        }
    }

    #[test]
    fn a_node_that_is_gone_is_no_error() {
        let (store, mut fake) = after_a_transaction();
        fake.twists.extend([Twist::Honest, Twist::Error("ENOENT"), Twist::Error("EACCES")]);
        assert_eq!(taken_at_once(&store, &mut fake), (1, Some(Ok(None))));
    }

    #[test]
    fn while_anything_is_under_way_nothing_is_guessed() {
        let (store, mut fake) = after_a_transaction();
        {
            let mut read = pin!(store.read("node"));
            assert!(poll_once(read.as_mut()).is_pending());
            assert!(Guess::start(&store).is_none());
            assert!(block_on(&store, &mut fake, read).is_ok());
        }
        {
            let mut taken = pin!(at_once(&store));
            assert!(poll_once(taken.as_mut()).is_pending());
            assert!(Guess::start(&store).is_none(), "one at a time");
        }
        let quiet = block_on(&store, &mut fake, store.quiesce()).expect("nobody else does");
        assert!(Guess::start(&store).is_none());
        fake.restore(true);
        quiet.resume(SuspendOutcome::Resumed);
        assert!(Guess::start(&store).is_none(), "another connection counts anew");
    }

    /// Dropped, or overtaken by a quiesce, at any moment, it leaves nothing open.
    #[test]
    fn a_guess_may_end_at_any_moment() {
        let mut is_over = false;
        for polls in 0.. {
            for quiesces in [false, true] {
                let (store, mut fake) = after_a_transaction();
                fake.chunk = 9;
                let mut taken = Box::pin(at_once(&store));
                is_over = poll_once(taken.as_mut()).is_ready();
                {
                    let mut pump = pin!(store.pump());
                    for _ in 0..polls {
                        assert!(poll_once(pump.as_mut()).is_pending());
                        fake.step();
                        store.on_event();
                        is_over = is_over || poll_once(taken.as_mut()).is_ready();
                    }
                }
                fake.chunk = 4096;
                if quiesces && !is_over {
                    let both = async { zip(store.quiesce(), taken).await.0 };
                    let quiet = block_on(&store, &mut fake, both).expect("nobody else does");
                    quiet.resume(SuspendOutcome::Continued);
                } else {
                    drop(taken);
                }
                assert_nothing_is_open(&store, &mut fake);
            }
            if is_over {
                assert!(polls > 10, "{polls} is not bit by bit");
                return;
            }
        }
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

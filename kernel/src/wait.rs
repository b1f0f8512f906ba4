//! Ways for a task to wait: a [`Flag`] that an upcall sets, [`first_of`] two things, and [`yield_now`].

use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;

use atomic_waker::AtomicWaker;
use xen_sys::primitive::sync::atomic::{AtomicBool, Ordering};

/// Set from anywhere, waited for by one task. Setting it twice before the task runs is the same as once.
pub(crate) struct Flag {
    set: AtomicBool,
    waiter: AtomicWaker,
}

impl Flag {
    pub(crate) const fn new() -> Flag {
        Flag { set: AtomicBool::new(false), waiter: AtomicWaker::new() }
    }

    /// Sets it and wakes the waiter. Context: any; lock-free.
    pub(crate) fn set(&self) {
        // ORDERING: SeqCst, "publish mine, then look at yours": the flag before the waiter here, the waiter before the flag
        //   in `wait`. AtomicWaker's own operations are AcqRel on one word, which gives the same; SeqCst keeps it from resting on that.
        self.set.store(true, Ordering::SeqCst);
        self.waiter.wake();
    }

    /// Waits until it is set, and clears it. One task at a time.
    pub(crate) async fn wait(&self) {
        poll_fn(|context| {
            if self.take() {
                return Poll::Ready(());
            }
            self.waiter.register(context.waker());
            if self.take() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Clears it; whether it was set.
    pub(crate) fn take(&self) -> bool {
        // ORDERING: SeqCst, pairs with the store in `set`; see there.
        self.set.swap(false, Ordering::SeqCst)
    }
}

/// What came first.
pub(crate) enum First<A, B> {
    One(A),
    Other(B),
}

/// Waits for either and drops the one that has not come; where both have, `one` is taken.
pub(crate) async fn first_of<A, B>(one: impl Future<Output = A>, other: impl Future<Output = B>) -> First<A, B> {
    let (mut one, mut other) = (pin!(one), pin!(other));
    poll_fn(|context| {
        if let Poll::Ready(value) = one.as_mut().poll(context) {
            return Poll::Ready(First::One(value));
        }
        other.as_mut().poll(context).map(First::Other)
    })
    .await
}

/// Lets every other ready task of this CPU run first, and a rendezvous start.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

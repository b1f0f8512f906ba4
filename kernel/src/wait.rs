//! Ways for a task to wait: a [`Flag`] that an upcall sets, and [`yield_now`].

use core::future::poll_fn;
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

//! [`Pending`]: the wait for the end of a call, on the spot or as a future. The states of a [`CallNode`] that concern
//! it are drawn in `call.rs`. Context: task. Suspend: *kept*; the end may come after a restore.
//!
//! Weakening any ordering below fails in `tests/loom_inbox.rs`.

use core::future::Future;
use core::marker::PhantomData;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use xen_sys::primitive::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::call::{CallNode, State};
use crate::relax::{Backoff, Patience, Relax};

/// A call that has been posted. Await it, [`wait`](Pending::wait) for it, or drop it: the call runs all the same.
#[must_use = "dropping it means that nobody waits for the end of the call"]
#[derive(Debug)]
pub struct Pending {
    /// None once the end has been seen.
    node: Option<&'static CallNode>,
    /// Only one thread at a time looks at the end.
    not_sync: PhantomData<core::cell::Cell<()>>,
}

impl Pending {
    /// The one wait for a node that was claimed just now.
    pub(crate) fn of(node: &'static CallNode) -> Pending {
        Pending { node: Some(node), not_sync: PhantomData }
    }

    /// Waits on the spot. Context: task, upcalls unmasked, as the target may be waiting for us in the same way.
    pub fn wait<R: Relax + ?Sized>(mut self, relax: &R) {
        let Some(node) = self.node else { return };
        let mut backoff = Backoff::new(relax, Patience::SHORT);
        while !node.is_done() {
            backoff.step();
        }
        self.finish(node);
    }

    /// The call was not posted: the node is idle again.
    pub(crate) fn take_back(mut self) {
        if let Some(node) = self.node {
            self.finish(node);
        }
    }

    /// The end has been seen (with Acquire), or there was no call: the node is free for the next call.
    fn finish(&mut self, node: &'static CallNode) {
        set_waker(node, None);
        self.node = None;
        // ORDERING: Release, pairs with the Acquire in `claim`: we are through with the cells.
        node.state.store(State::Idle, Release);
    }
}

impl Future for Pending {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(node) = self.node else { return Poll::Ready(()) };
        // ORDERING: Acquire, for `Done`: pairs with the release half in `complete`.
        let mut seen = node.state.load(Acquire);
        loop {
            match seen {
                State::Queued | State::Waiting => {
                    // ORDERING: Relaxed when won: the waker in there is one that we put in. Acquire when lost, as
                    //   above.
                    if let Err(now) = node.state.change(seen, State::Registering, Relaxed, Acquire) {
                        seen = now;
                        continue;
                    }
                    set_waker(node, Some(context.waker()));
                    // ORDERING: Release, pairs with the acquire half in `complete`: the taker sees the waker.
                    //   Acquire when lost: it is `Done`, as above.
                    match node.state.change(State::Registering, State::Waiting, Release, Acquire) {
                        Ok(()) => return Poll::Pending,
                        Err(now) => seen = now,
                    }
                }
                State::Waking => {
                    // The taker is about to write `Done`, and wakes a waker that may not be the one we have now.
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                State::Done | State::Idle | State::Registering | State::Abandoned => {
                    self.finish(node);
                    return Poll::Ready(());
                }
            }
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Some(node) = self.node else { return };
        // ORDERING: Acquire, for `Done`: pairs with the release half in `complete`.
        let mut seen = node.state.load(Acquire);
        loop {
            let to = match seen {
                // The waker is taken out first, and is ours only in this state.
                State::Waiting => State::Registering,
                State::Queued | State::Registering | State::Waking => State::Abandoned,
                State::Done | State::Idle | State::Abandoned => return self.finish(node),
            };
            // ORDERING: Release when won, pairs with the acquire half in `complete`, from where `Idle` follows: whoever
            //   claims the node next comes after our last touch. Acquire when lost, as above.
            match node.state.change(seen, to, Release, Acquire) {
                Ok(()) if to == State::Registering => {
                    set_waker(node, None);
                    seen = to;
                }
                Ok(()) => return,
                Err(now) => seen = now,
            }
        }
    }
}

/// Only for the [`Pending`], in the states in which CN2 gives it the waker.
fn set_waker(node: &'static CallNode, to: Option<&Waker>) {
    node.waker.with_mut(|waker| {
        // SAFETY: ours by CN2, as the caller is the node's one `Pending`, in `Registering` or `Done`.
        unsafe { *waker = to.cloned() }
    });
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::RefCell;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use percpu::{CpuId, Masked, hosted};

    use super::*;
    use crate::call::NotPosted::Busy;
    use crate::tests::{Alone, kernel};

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    fn poll(pending: &mut Pending, woken: &Arc<Woken>) -> Poll<()> {
        Pin::new(pending).poll(&mut Context::from_waker(&Waker::from(Arc::clone(woken))))
    }

    std::thread_local! {
        static RAN: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
    }

    fn note(_masked: &Masked, argument: usize) {
        RAN.with_borrow_mut(|ran| ran.push(argument));
    }

    fn ran() -> Vec<usize> {
        RAN.with_borrow_mut(std::mem::take)
    }

    #[test]
    fn a_node_is_claimed_until_its_end_has_been_seen() {
        static NODE: CallNode = CallNode::new();
        let (mail, _on) = kernel(1);
        let pending = mail.call(CpuId::BOOT, &NODE, note, 1).expect("a new node is idle");
        assert_eq!(mail.call(CpuId::BOOT, &NODE, note, 2).err(), Some(Busy));
        mail.serve(&hosted::masked());
        assert_eq!(mail.call(CpuId::BOOT, &NODE, note, 3).err(), Some(Busy));
        pending.wait(&Alone);
        drop(mail.call(CpuId::BOOT, &NODE, note, 4).expect("its end has been seen"));
        mail.serve(&hosted::masked());
        assert_eq!(ran(), [1, 4]);
    }

    #[test]
    fn a_dropped_wait_frees_the_node_once_it_has_run() {
        static NODE: CallNode = CallNode::new();
        let (mail, _on) = kernel(1);
        // Dropped before it runs, with and without a waker in it; and after.
        let woken = Arc::new(Woken::default());
        drop(mail.call(CpuId::BOOT, &NODE, note, 1).expect("a new node is idle"));
        assert_eq!(mail.call(CpuId::BOOT, &NODE, note, 9).err(), Some(Busy));
        mail.serve(&hosted::masked());
        let mut pending = mail.call(CpuId::BOOT, &NODE, note, 2).expect("abandoned, and has run");
        assert!(poll(&mut pending, &woken).is_pending());
        drop(pending);
        mail.serve(&hosted::masked());
        let pending = mail.call(CpuId::BOOT, &NODE, note, 3).expect("abandoned, and has run");
        mail.serve(&hosted::masked());
        drop(pending);
        drop(mail.call(CpuId::BOOT, &NODE, note, 4).expect("dropped after its end"));
        mail.serve(&hosted::masked());
        assert_eq!(ran(), [1, 2, 3, 4]);
        assert_eq!((woken.0.load(Relaxed), Arc::strong_count(&woken)), (0, 1), "its waker is gone, unused");
    }

    #[test]
    fn the_latest_waker_is_woken_once() {
        static NODE: CallNode = CallNode::new();
        let (mail, _on) = kernel(1);
        let (first, second) = (Arc::new(Woken::default()), Arc::new(Woken::default()));
        let mut pending = mail.call(CpuId::BOOT, &NODE, note, 1).expect("a new node is idle");
        assert!(poll(&mut pending, &first).is_pending());
        assert!(poll(&mut pending, &second).is_pending());
        mail.serve(&hosted::masked());
        assert_eq!((first.0.load(Relaxed), second.0.load(Relaxed)), (0, 1));
        assert!(poll(&mut pending, &second).is_ready());
        assert!(poll(&mut pending, &second).is_ready(), "ready once more, as it stays over");
        assert_eq!(Arc::strong_count(&second), 1);
    }
}

//! [`RunQueue`]: what one CPU has to run next. Anybody adds, the owner takes all at once.
//!
//! A list through the tasks themselves, newest first, with its head in one word; so adding never allocates and never finds the
//! queue full. Progress: adding is lock-free (a failed exchange means that somebody else's succeeded), taking is wait-free.
//! Nobody waits for a CPU that Xen has put aside in the middle of it. A bounded ring of slots was turned down for that: its
//! taker finds a slot that a CPU has claimed and not filled, and spins until that one runs again.
//!
//! Context: any, upcalls too. Suspend: *kept*. This file knows no other of the kernel's, so that
//! `tests/loom_run_queue.rs` can have it; weakening either ordering of the head fails there.

use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr::{self, NonNull};

use xen_sys::const_unless_loom;
use xen_sys::primitive::sync::atomic::AtomicPtr;
use xen_sys::primitive::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// The place in an item that leads to the next one. Written by who adds the item, and then by who has taken it.
pub(crate) struct Link(AtomicPtr<()>);

impl Link {
    const_unless_loom! {
        pub(crate) fn new() -> Link {
            Link(AtomicPtr::new(ptr::null_mut()))
        }
    }
}

/// What can stand in a queue: an owner of something with a [`Link`] in it, as a pointer.
///
/// # Safety
/// `from_raw` gives back what `into_raw` was given, any number of times as long as at most one of the copies is dropped; and
/// the link stays where it is.
pub(crate) unsafe trait Linked: Sized {
    fn link(&self) -> &Link;

    fn into_raw(self) -> NonNull<()>;

    /// # Safety
    /// `raw` came from `into_raw`, and no other copy of it is used or dropped any more, but for one that is being added.
    unsafe fn from_raw(raw: NonNull<()>) -> Self;
}

/// What one CPU has to run next.
///
/// - RQ1: `newest` is null or came from `into_raw` of an item that belongs to the queue; its link likewise.
pub(crate) struct RunQueue<T: Linked> {
    newest: AtomicPtr<()>,
    of: PhantomData<T>,
}

// SAFETY: items pass from the CPU that adds them to the one that takes them, as if they were sent.
unsafe impl<T: Linked + Send> Sync for RunQueue<T> {}
// SAFETY: as above.
unsafe impl<T: Linked + Send> Send for RunQueue<T> {}

impl<T: Linked> RunQueue<T> {
    pub(crate) fn new() -> RunQueue<T> {
        RunQueue { newest: AtomicPtr::new(ptr::null_mut()), of: PhantomData }
    }

    /// Adds `item` behind all others.
    pub(crate) fn push(&self, item: T) {
        let raw = item.into_raw();
        // SAFETY: from `into_raw` just now. Not used any more once the exchange below has given `raw` away, and never dropped.
        let item = ManuallyDrop::new(unsafe { T::from_raw(raw) });
        // ORDERING: Relaxed, a guess that the exchange checks.
        let mut seen = self.newest.load(Relaxed);
        loop {
            // ORDERING: Relaxed, published by the exchange.
            item.link().0.store(seen, Relaxed);
            // ORDERING: Release, pairs with the Acquire in `take`: the item, its link, and all that was done before it was added.
            //   A failed exchange is a guess again.
            match self.newest.compare_exchange_weak(seen, raw.as_ptr(), Release, Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// Takes all, in the order in which they were added.
    pub(crate) fn take(&self) -> Taken<T> {
        // ORDERING: Acquire, pairs with the Release in `push`, of every item: those behind the newest were added before, and the
        //   exchanges since continue their release sequences.
        let mut rest = self.newest.swap(ptr::null_mut(), Acquire);
        let mut first = ptr::null_mut();
        while let Some(raw) = NonNull::new(rest) {
            // SAFETY: ours since the swap (RQ1). Not dropped: it goes into the list again below.
            let item = ManuallyDrop::new(unsafe { T::from_raw(raw) });
            // ORDERING: Relaxed both, ours alone.
            rest = item.link().0.load(Relaxed);
            item.link().0.store(first, Relaxed);
            first = raw.as_ptr();
        }
        Taken { first, of: PhantomData }
    }

    /// Whether there is nothing. May be over when it is read.
    pub(crate) fn is_empty(&self) -> bool {
        // ORDERING: Relaxed, nothing is read because of it; who adds from elsewhere sends an event after it.
        self.newest.load(Relaxed).is_null()
    }
}

impl<T: Linked> Drop for RunQueue<T> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// Items that were taken from a queue, oldest first.
///
/// - TK1: `first` is null or came from `into_raw` of an item that is ours; its link likewise.
pub(crate) struct Taken<T: Linked> {
    first: *mut (),
    of: PhantomData<T>,
}

impl<T: Linked> Taken<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_null()
    }
}

impl<T: Linked> Iterator for Taken<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let raw = NonNull::new(self.first)?;
        // SAFETY: ours (TK1), and no longer reachable from `self` after the next line.
        let item = unsafe { T::from_raw(raw) };
        // ORDERING: Relaxed, ours alone.
        self.first = item.link().0.load(Relaxed);
        Some(item)
    }
}

impl<T: Linked> Drop for Taken<T> {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use async_task::{Builder, Runnable};

    use super::*;

    // SAFETY: `Runnable`'s own pair; its metadata stands in the task.
    unsafe impl Linked for Runnable<Link> {
        fn link(&self) -> &Link {
            self.metadata()
        }

        fn into_raw(self) -> NonNull<()> {
            Runnable::into_raw(self)
        }

        unsafe fn from_raw(raw: NonNull<()>) -> Runnable<Link> {
            // SAFETY: as the caller says.
            unsafe { Runnable::from_raw(raw) }
        }
    }

    fn ready(queue: &'static RunQueue<Runnable<Link>>, future: impl Future<Output = ()> + Send + 'static) {
        let (runnable, task) = Builder::new().metadata(Link::new()).spawn(|_| future, |runnable| queue.push(runnable));
        task.detach();
        runnable.schedule();
    }

    #[test]
    fn tasks_come_in_order_and_again() {
        static LOG: std::sync::Mutex<Vec<u32>> = std::sync::Mutex::new(Vec::new());
        static QUEUE: std::sync::LazyLock<RunQueue<Runnable<Link>>> = std::sync::LazyLock::new(RunQueue::new);
        assert!(QUEUE.is_empty() && QUEUE.take().is_empty());
        for n in 0..3 {
            ready(&QUEUE, async move {
                for round in 0..2 {
                    LOG.lock().expect("no panic").push(round * 10 + n);
                    let mut polled = false;
                    core::future::poll_fn(|context| {
                        if core::mem::replace(&mut polled, true) {
                            return core::task::Poll::Ready(());
                        }
                        context.waker().wake_by_ref();
                        core::task::Poll::Pending
                    })
                    .await;
                }
            });
        }
        while !QUEUE.is_empty() {
            for task in QUEUE.take() {
                task.run();
            }
        }
        assert_eq!(*LOG.lock().expect("no panic"), [0, 1, 2, 10, 11, 12]);
    }

    #[test]
    fn what_is_not_run_is_dropped() {
        static QUEUE: std::sync::LazyLock<RunQueue<Runnable<Link>>> = std::sync::LazyLock::new(RunQueue::new);
        let held = std::sync::Arc::new(());
        for _ in 0..3 {
            let held = held.clone();
            ready(&QUEUE, async move { drop(held) });
        }
        let mut taken = QUEUE.take();
        drop(taken.next());
        assert_eq!(std::sync::Arc::strong_count(&held), 3);
        drop(taken);
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
    }

    #[test]
    fn many_add_while_one_takes() {
        const EACH: usize = if cfg!(miri) { 20 } else { 2000 };
        struct Node {
            link: Link,
            from: usize,
            n: usize,
        }
        // SAFETY: `Box`'s own pair.
        unsafe impl Linked for Box<Node> {
            fn link(&self) -> &Link {
                &self.link
            }

            fn into_raw(self) -> NonNull<()> {
                NonNull::new(Box::into_raw(self).cast()).expect("a box is not null")
            }

            unsafe fn from_raw(raw: NonNull<()>) -> Box<Node> {
                // SAFETY: as the caller says.
                unsafe { Box::from_raw(raw.cast().as_ptr()) }
            }
        }
        let queue = RunQueue::<Box<Node>>::new();
        std::thread::scope(|scope| {
            for from in 0..3 {
                let queue = &queue;
                scope.spawn(move || {
                    for n in 0..EACH {
                        queue.push(Box::new(Node { link: Link::new(), from, n }));
                    }
                });
            }
            let mut next = [0; 3];
            while next != [EACH; 3] {
                for node in queue.take() {
                    assert_eq!(node.n, next[node.from], "in the order of each");
                    next[node.from] += 1;
                }
                std::thread::yield_now();
            }
        });
    }
}

//! [`CallNode`]: one call to another CPU, in memory that the caller owns, and [`Pending`]: the wait for its end.
//!
//! The target runs the call in its upcall (or while it waits in a rendezvous), so a call takes `&Masked`, is short, does not
//! block and does not wait for other CPUs. Calls that were posted to one CPU run in the order in which they were posted.
//! A call may be posted before a suspend and run after it: its argument must not hold an mfn or a port number.
//!
//! ```text
//!          claim         run          end seen
//!   Idle ────────► Queued ────► Done ──────────► Idle
//!                  │    ▲  ▲
//!             poll ▼    │  └ Registering ──► Done      the end came while the waker was being put in
//!           Registering ⇄ Waiting ────► Waking ────► Done      the taker has the waker
//!
//!   Queued, Waiting, Waking ── Pending dropped ──► Abandoned ── run ──► Idle
//! ```
//!
//! Why a node cannot go away while it is queued: the nodes that [`Mail::call`](crate::Mail::call) takes are `'static`, and
//! stay claimed until they have run, also when nobody waits any more. Those of [`Mail::run_on`](crate::Mail::run_on) live in
//! its own frame, which it does not leave before the end. A node that unlinks itself when it is dropped was turned down:
//! the list has one link per node and one word for its head, and taking from its middle would need a lock.

use core::fmt;
use core::future::Future;
use core::marker::PhantomData;
use core::pin::Pin;
use core::ptr::{self, NonNull};
use core::task::{Context, Poll, Waker};

use percpu::Masked;
use xen_sys::const_unless_loom;
use xen_sys::primitive::cell::UnsafeCell;
use xen_sys::primitive::sync::atomic::AtomicU8;
use xen_sys::primitive::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release};

use crate::relax::{Backoff, Patience, Relax};

/// Where a node is in its life; the drawing is at the top of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum State {
    Idle,
    Queued,
    Registering,
    Waiting,
    Waking,
    Done,
    Abandoned,
}

/// A word that holds a [`State`] and nothing else.
struct AtomicState(AtomicU8);

impl AtomicState {
    fn load(&self, order: Ordering) -> State {
        Self::decode(self.0.load(order))
    }

    fn store(&self, state: State, order: Ordering) {
        self.0.store(state as u8, order);
    }

    fn change(&self, from: State, to: State, won: Ordering, lost: Ordering) -> Result<(), State> {
        self.0.compare_exchange(from as u8, to as u8, won, lost).map(|_| ()).map_err(Self::decode)
    }

    fn decode(word: u8) -> State {
        const STATES: [State; 7] = [
            State::Idle,
            State::Queued,
            State::Registering,
            State::Waiting,
            State::Waking,
            State::Done,
            State::Abandoned,
        ];
        STATES[usize::from(word)]
    }
}

/// What is run on the target.
#[derive(Clone, Copy)]
enum Work {
    Nothing,
    Plain(fn(&Masked, usize), usize),
    /// The function may be called once, with this pointer.
    Scoped(unsafe fn(&Masked, *mut ()), *mut ()),
}

/// One call to another CPU. Reusable: claimed for one call at a time.
///
/// - CN1: `next` and `work` belong to whoever moved `state` from `Idle` to `Queued`, until the node is posted; then to the
///   inbox, and then to the CPU that took it, until that moves `state` to `Done` or `Idle`.
/// - CN2: `waker` belongs to the one [`Pending`] in `Queued`, `Registering` and `Done`; in `Waiting` to whoever moves the state
///   on (to `Registering`: the `Pending`; to `Waking`: the taker); in `Waking` to the taker. Nobody's in the others, and empty.
/// - CN3: after the taker has written `Done` it does not touch the node again: its memory may be gone.
#[repr(align(16))]
pub struct CallNode {
    state: AtomicState,
    next: UnsafeCell<*mut CallNode>,
    work: UnsafeCell<Work>,
    waker: UnsafeCell<Option<Waker>>,
}

// SAFETY: each cell has one owner at a time, by CN1 and CN2, and ownership passes through `state` or the inbox's word with
// release and acquire. What passes can be sent: a plain function and a number, a waker, and a pointer whose
// target `Mail::run_on` demands to be `Send`.
unsafe impl Sync for CallNode {}
// SAFETY: as above; a node that can be moved is in no list.
unsafe impl Send for CallNode {}

/// The node is still in use by an earlier call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Busy;

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("call node is still in use")
    }
}

impl core::error::Error for Busy {}

impl CallNode {
    const_unless_loom! {
        /// A node that waits for its first call.
        pub fn new() -> CallNode {
            CallNode {
                state: AtomicState(AtomicU8::new(State::Idle as u8)),
                next: UnsafeCell::new(ptr::null_mut()),
                work: UnsafeCell::new(Work::Nothing),
                waker: UnsafeCell::new(None),
            }
        }
    }

    /// A claimed node.
    pub(crate) fn scoped(work: unsafe fn(&Masked, *mut ()), with: *mut ()) -> CallNode {
        CallNode {
            state: AtomicState(AtomicU8::new(State::Queued as u8)),
            work: UnsafeCell::new(Work::Scoped(work, with)),
            ..CallNode::new()
        }
    }

    /// Claims the node for a call of `work` with `argument`. It is to be posted next.
    pub(crate) fn claim(&'static self, work: fn(&Masked, usize), argument: usize) -> Result<Pending, Busy> {
        // ORDERING: Acquire, pairs with the Release that made the node idle: its last user is through with the cells.
        self.state.change(State::Idle, State::Queued, Acquire, Relaxed).map_err(|_| Busy)?;
        self.work.with_mut(|place| {
            // SAFETY: ours since the exchange, by CN1.
            unsafe { *place = Work::Plain(work, argument) }
        });
        Ok(Pending { node: Some(self), not_sync: PhantomData })
    }

    /// Whether the call of a scoped node is over. If so, all that it did is visible.
    pub(crate) fn is_done(&self) -> bool {
        // ORDERING: Acquire, pairs with the release half in `complete`.
        self.state.load(Acquire) == State::Done
    }

    /// The rest of the list.
    ///
    /// # Safety
    /// The node is valid and its list is the caller's (CN1).
    pub(crate) unsafe fn next(node: NonNull<CallNode>) -> *mut CallNode {
        // SAFETY: valid, says the caller.
        let cell = unsafe { &(*node.as_ptr()).next };
        cell.with(|next| {
            // SAFETY: ours, says the caller.
            unsafe { *next }
        })
    }

    /// Puts `rest` behind the node.
    ///
    /// # Safety
    /// As for [`CallNode::next`].
    pub(crate) unsafe fn set_next(node: NonNull<CallNode>, rest: *mut CallNode) {
        // SAFETY: valid, says the caller.
        let cell = unsafe { &(*node.as_ptr()).next };
        cell.with_mut(|next| {
            // SAFETY: ours, says the caller.
            unsafe { *next = rest }
        });
    }

    /// Does the call and ends it.
    ///
    /// # Safety
    /// The node is valid, was taken from an inbox by this CPU, is in no list any more, and is run once.
    pub(crate) unsafe fn run(node: NonNull<CallNode>, masked: &Masked) {
        // SAFETY: valid, says the caller.
        let cell = unsafe { &(*node.as_ptr()).work };
        let work = cell.with(|work| {
            // SAFETY: ours by CN1, as we took it.
            unsafe { *work }
        });
        match work {
            Work::Plain(work, argument) => work(masked, argument),
            // SAFETY: called once, with its own pointer, as the node is run once.
            Work::Scoped(work, with) => unsafe { work(masked, with) },
            Work::Nothing => {}
        }
        // SAFETY: as the caller says, and the call has been done.
        unsafe { CallNode::complete(node) };
    }

    /// # Safety
    /// As for [`CallNode::run`].
    unsafe fn complete(node: NonNull<CallNode>) {
        // SAFETY: valid, says the caller, until we write `Done` below (CN3).
        let state = unsafe { &(*node.as_ptr()).state };
        let mut seen = State::Queued;
        loop {
            let to = match seen {
                State::Queued | State::Registering => State::Done,
                State::Waiting => State::Waking,
                // A node that is being run is in none of the others; abandoned is the one that harms nobody.
                State::Abandoned | State::Idle | State::Waking | State::Done => State::Idle,
            };
            // ORDERING: AcqRel. Release, pairs with the Acquire of whoever sees the end: what the call did is visible.
            //   Acquire, pairs with the release in `Pending::poll` (`Waiting`): we see the waker.
            //   A lost exchange only tells what to try next.
            match state.change(seen, to, AcqRel, Relaxed) {
                Ok(()) if to == State::Waking => break,
                Ok(()) => return,
                Err(now) => seen = now,
            }
        }
        // SAFETY: valid: a node with a waker is `'static`.
        let cell = unsafe { &(*node.as_ptr()).waker };
        let waker = cell.with_mut(|waker| {
            // SAFETY: ours in `Waking`, by CN2.
            unsafe { (*waker).take() }
        });
        // ORDERING: Release, pairs with the Acquire of whoever sees the end, or claims the node: we are through with
        //   the waker. A lost exchange means `Abandoned`, from where only we lead on.
        if state.change(State::Waking, State::Done, Release, Relaxed).is_err() {
            // ORDERING: Release, as above.
            state.store(State::Idle, Release);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Default for CallNode {
    fn default() -> CallNode {
        CallNode::new()
    }
}

impl fmt::Debug for CallNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // ORDERING: Relaxed, to be printed only.
        write!(f, "CallNode({:?})", self.state.load(Relaxed))
    }
}

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
    /// Waits on the spot. Context: task, upcalls unmasked, as the target may be waiting for us in the same way.
    pub fn wait<R: Relax + ?Sized>(mut self, relax: &R) {
        let Some(node) = self.node else { return };
        let mut backoff = Backoff::new(relax, Patience::SHORT);
        while !node.is_done() {
            backoff.step();
        }
        self.finish(node);
    }

    /// The end has been seen (with Acquire): the node is free for the next call.
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
                    // ORDERING: Relaxed when won: the waker in there is one that we put in. Acquire when lost, as above.
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

    use percpu::{CpuId, hosted};

    use super::*;
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

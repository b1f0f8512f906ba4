//! [`CallNode`]: one call to another CPU, in memory that the caller owns. The wait for its end is in `pending.rs`.
//!
//! The target runs the call in its upcall (or while it waits in a rendezvous), so a call takes `&Masked`, is short,
//! does not block and does not wait for other CPUs. Calls that were posted to one CPU run in the order in which they
//! were posted. A call may be posted before a suspend and run after it: its argument must not hold an mfn or a port
//! number.
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
//! Why a node cannot go away while it is queued: the nodes that [`Mail::call`](crate::Mail::call) takes are `'static`,
//! and stay claimed until they have run, also when nobody waits any more. Those of
//! [`Mail::run_on`](crate::Mail::run_on) live in its own frame, which it does not leave before the end, and those of
//! [`Mail::run_on_many`](crate::Mail::run_on_many) are borrowed until then. A node that unlinks itself when it is
//! dropped was turned down: the list has one link per node and one word for its head, and taking from its middle would
//! need a lock.
//!
//! Weakening any ordering below fails in `tests/loom_inbox.rs`.

use core::fmt;
use core::ptr::{self, NonNull};
use core::task::Waker;

use percpu::Masked;
use xen_sys::const_unless_loom;
use xen_sys::primitive::cell::UnsafeCell;
use xen_sys::primitive::sync::atomic::AtomicU8;
use xen_sys::primitive::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release};

use crate::pending::Pending;

/// Where a node is in its life; the drawing is at the top of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum State {
    Idle,
    Queued,
    Registering,
    Waiting,
    Waking,
    Done,
    Abandoned,
}

/// A word that holds a [`State`] and nothing else.
pub(crate) struct AtomicState(AtomicU8);

impl AtomicState {
    pub(crate) fn load(&self, order: Ordering) -> State {
        Self::decode(self.0.load(order))
    }

    pub(crate) fn store(&self, state: State, order: Ordering) {
        self.0.store(state as u8, order);
    }

    pub(crate) fn change(&self, from: State, to: State, won: Ordering, lost: Ordering) -> Result<(), State> {
        self.0.compare_exchange(from as u8, to as u8, won, lost).map(|_| ()).map_err(Self::decode)
    }

    /// Whether the state is `state`.
    pub(crate) fn is(&self, state: State, order: Ordering) -> bool {
        self.0.load(order) == state as u8
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
/// - CN1: `next` and `work` belong to whoever moved `state` from `Idle` to `Queued`, until the node is posted; then to
///   the inbox, and then to the CPU that took it, until that moves `state` to `Done` or `Idle`.
/// - CN2: `waker` belongs to the one [`Pending`] in `Queued`, `Registering` and `Done`; in `Waiting` to whoever moves
///   the state on (to `Registering`: the `Pending`; to `Waking`: the taker); in `Waking` to the taker. Nobody's in the
///   others, and empty.
/// - CN3: after the taker has written `Done` it does not touch the node again: its memory may be gone.
#[repr(align(16))]
pub struct CallNode {
    pub(crate) state: AtomicState,
    next: UnsafeCell<*mut CallNode>,
    work: UnsafeCell<Work>,
    pub(crate) waker: UnsafeCell<Option<Waker>>,
}

// SAFETY: each cell has one owner at a time, by CN1 and CN2, and ownership passes through `state` or the inbox's word
// with release and acquire. What passes can be sent: a plain function and a number, a waker, and a pointer whose target
// `Mail::run_on` demands to be `Send`, or `Mail::run_on_many` to be `Sync`.
unsafe impl Sync for CallNode {}
// SAFETY: as above; a node that can be moved is in no list.
unsafe impl Send for CallNode {}

/// Why a call was not posted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotPosted {
    /// The node is still in use by an earlier call.
    Busy,
    /// The CPU is down. The node is as before.
    Down,
}

impl fmt::Display for NotPosted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotPosted::Busy => "call node is still in use",
            NotPosted::Down => "the cpu is down",
        })
    }
}

impl core::error::Error for NotPosted {}

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
    pub(crate) fn claim(&'static self, work: fn(&Masked, usize), argument: usize) -> Result<Pending, NotPosted> {
        // ORDERING: Acquire, pairs with the Release that made the node idle: its last user is through with the cells.
        self.state.change(State::Idle, State::Queued, Acquire, Relaxed).map_err(|_| NotPosted::Busy)?;
        self.work.with_mut(|place| {
            // SAFETY: ours since the exchange, by CN1.
            unsafe { *place = Work::Plain(work, argument) }
        });
        Ok(Pending::of(self))
    }

    /// Whether the call of a scoped node is over. If so, all that it did is visible.
    pub(crate) fn is_done(&self) -> bool {
        // ORDERING: Acquire, pairs with the release half in `complete`.
        self.state.is(State::Done, Acquire)
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
        // SAFETY: valid, says the caller, until we write `Done` (CN3).
        let state = unsafe { &(*node.as_ptr()).state };
        // ORDERING: Release when won, pairs with the Acquire of whoever sees the end: what the call did is visible. A lost
        //   exchange only tells what to try next.
        if let Err(seen) = state.change(State::Queued, State::Done, Release, Relaxed) {
            // SAFETY: as the caller says; `Done` has not been written.
            unsafe { CallNode::complete_awaited(node, seen) };
        }
    }

    /// The rest of [`CallNode::complete`], where a future waits or was dropped.
    ///
    /// # Safety
    /// As for [`CallNode::run`].
    #[cold]
    unsafe fn complete_awaited(node: NonNull<CallNode>, mut seen: State) {
        // SAFETY: valid, says the caller, until we write `Done` below (CN3).
        let state = unsafe { &(*node.as_ptr()).state };
        loop {
            let to = match seen {
                State::Registering => State::Done,
                State::Waiting => State::Waking,
                // A node that is being run is in none of the others; abandoned is the one that harms nobody.
                State::Abandoned | State::Queued | State::Idle | State::Waking | State::Done => State::Idle,
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

//! [`Inbox`]: the work that other CPUs have for one CPU. One word.
//!
//! An IPI port says only "look"; what is wanted stands here. Work that is only "somebody wants this of you" is a
//! tag bit ([`Kind`]), so it takes no memory and merges with itself; calls are a list of [`CallNode`]s that their
//! callers own, so posting never allocates. The port needs a send only when the inbox was empty: until the owner has
//! taken everything, whoever found it empty has an event under way to it.
//!
//! | bits of the word | meaning | owner of the data |
//! |---|---|---|
//! | all 0 | empty: the next poster sends the port | |
//! | 0..=2 | a set of [`Kind`]s | |
//! | 3 | [closed](Inbox::close): its CPU is down, and takes no calls; [`Kind`]s are kept until it is up | |
//! | the others | address of the node posted last, or 0 | the inbox, until the list is taken; then the taker |
//!
//! Who writes: posters on any CPU, in any context (lock-free: a failed exchange means that another poster's
//! succeeded). The owner takes, or closes, with one swap (wait-free). So a call is either taken by the owner, and run, or
//! refused: a CPU that goes down leaves none behind. Taking opens: only a CPU that is up takes. Suspend: *kept*. Work posted before it is still there
//! after a restore, though its event is lost: so an owner that has bound its port anew looks once without being asked
//! (`tests/loom_inbox_rebind.rs`).
//!
//! Turned down: one port for each kind (seven for each vcpu in Linux; `xl` gives a domain 1023 ports, and each of them
//! is bound again at resume, one after the other under a lock in Xen); a ring of calls (can be full, and a
//! poster in an upcall has nowhere to go); a set of the CPUs that are up for posters to look at (one can go down between
//! the look and the post).
//!
//! Weakening any ordering below fails in `tests/loom_inbox.rs`, `tests/loom_inbox_rebind.rs` or `tests/loom_hotplug.rs`.

use core::fmt;
use core::ptr::{self, NonNull};

use percpu::Masked;
use xen_sys::primitive::sync::atomic::AtomicPtr;
use xen_sys::primitive::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use crate::call::CallNode;

/// What a CPU can be asked for without a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Look at the run queue: somebody made a task of yours ready, froze all of them, or thawed them.
    Reschedule = 1,
    /// Come to the rendezvous. Nothing to do in the upcall: it takes the CPU out of sleep or user mode.
    Rendezvous = 2,
    /// Proof that you can be reached (`roll_call`).
    Alive = 4,
}

/// A set of [`Kind`]s.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Kinds(usize);

impl Kinds {
    const ALL: [Kind; 3] = [Kind::Reschedule, Kind::Rendezvous, Kind::Alive];
    const BITS: usize = 0x7;

    /// Whether `kind` is in the set.
    pub const fn contains(self, kind: Kind) -> bool {
        self.0 & kind as usize != 0
    }

    /// Whether nothing is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Kind> for Kinds {
    fn from_iter<I: IntoIterator<Item = Kind>>(kinds: I) -> Kinds {
        Kinds(kinds.into_iter().fold(0, |bits, kind| bits | kind as usize))
    }
}

impl fmt::Debug for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(Self::ALL.iter().filter(|kind| self.contains(**kind))).finish()
    }
}

/// Whether the poster has to send the owner's port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "work in an inbox that was empty is found only if the port is sent"]
pub enum Posted {
    /// The inbox was empty: send.
    First,
    /// Somebody else's send, or the owner's look, is under way and will find this too.
    Joined,
    /// The owner is down: a [`Kind`] waits until it is up, a call was not appended. Nothing is to be sent.
    Closed,
}

/// Something was in the inbox.
struct NotEmpty;

/// The tag of an inbox whose CPU is down.
const CLOSED: usize = 8;
const TAGS: usize = Kinds::BITS | CLOSED;

/// The work that other CPUs have for one CPU.
///
/// - IN1: the word, without its tag bits, is null or the address of a node whose `next` holds the rest of the
///   list in the same form.
/// - IN2: every node in the list is valid and belongs to the inbox: nobody else touches its `next` or its work.
/// - IN3: a closed inbox has no list.
pub struct Inbox {
    word: AtomicPtr<CallNode>,
}

const _: () = assert!(align_of::<CallNode>() > TAGS, "the tags need the low bits of a node's address");

impl Inbox {
    /// An empty inbox.
    pub fn new() -> Inbox {
        Inbox { word: AtomicPtr::new(ptr::null_mut()) }
    }

    /// An empty inbox of a CPU that is down.
    pub fn closed() -> Inbox {
        Inbox { word: AtomicPtr::new(ptr::without_provenance_mut(CLOSED)) }
    }

    /// Asks the owner for `kind`.
    pub fn post(&self, kind: Kind) -> Posted {
        match self.put_in_empty(ptr::without_provenance_mut(kind as usize)) {
            Ok(()) => Posted::First,
            Err(NotEmpty) => self.change(|seen| Some(seen.map_addr(|word| word | kind as usize))),
        }
    }

    /// Appends a call, unless the inbox is closed: the node is the caller's as before then.
    ///
    /// # Safety
    /// - The node stays valid until it is completed, if it is appended.
    /// - It is claimed for this post ([`CallNode`], CN1): it is in no list, and nobody else touches it.
    #[inline]
    pub(crate) unsafe fn post_node(&self, node: NonNull<CallNode>) -> Posted {
        // SAFETY: valid and claimed, says the caller, and not yet in the list, so `next` is ours.
        unsafe { CallNode::set_next(node, ptr::null_mut()) };
        match self.put_in_empty(node.as_ptr()) {
            Ok(()) => Posted::First,
            // SAFETY: as the caller says; it was not appended.
            Err(NotEmpty) => unsafe { self.append(node) },
        }
    }

    /// [`Inbox::post_node`] where the inbox was not empty when it was looked at.
    ///
    /// # Safety
    /// As there.
    #[inline(never)]
    unsafe fn append(&self, node: NonNull<CallNode>) -> Posted {
        self.change(|seen| {
            let tags = seen.addr() & TAGS;
            if tags & CLOSED != 0 {
                return None;
            }
            // SAFETY: valid and claimed, says the caller, and not yet in the list, so `next` is ours.
            unsafe { CallNode::set_next(node, untagged(seen)) };
            Some(node.as_ptr().map_addr(|address| address | tags))
        })
    }

    /// Takes everything, and opens the inbox if it was closed. Runs on the owner; what is not run by hand is run when the
    /// result is dropped.
    pub fn take<'m>(&self, masked: &'m Masked) -> Taken<'m> {
        // ORDERING: AcqRel. Acquire, pairs with the release half in `change`: we see the work that was posted and
        //   all that its poster did before.
        //   Release, pairs with the acquire half in `change`: a poster that comes after us sees the port that we
        //   published before we looked, so either we have its work or it has our port.
        let word = self.word.swap(ptr::null_mut(), AcqRel);
        Taken::of(word, masked)
    }

    /// Takes everything for the last time before the owner, on which this runs, goes down. Calls are refused from then on.
    pub fn close<'m>(&self, masked: &'m Masked) -> Taken<'m> {
        // ORDERING: Acquire, pairs with the release half in `change`, as in `take`. Nothing is passed on: who finds the
        //   inbox closed does nothing about it.
        let word = self.word.swap(ptr::without_provenance_mut(CLOSED), Acquire);
        Taken::of(word, masked)
    }

    /// Puts `new` in the place of an empty word, which it is most often.
    #[inline]
    fn put_in_empty(&self, new: *mut CallNode) -> Result<(), NotEmpty> {
        // ORDERING: AcqRel, pairs with the swap in `take` or `close`, both halves. A failed exchange tells only that there is
        //   another to come.
        self.word.compare_exchange(ptr::null_mut(), new, AcqRel, Relaxed).map(drop).map_err(|_| NotEmpty)
    }

    /// Puts `with(word)` in the word's place, unless that is `None`.
    fn change(&self, with: impl Fn(*mut CallNode) -> Option<*mut CallNode>) -> Posted {
        // ORDERING: Relaxed, a guess that the exchange checks. `Closed` rests on it alone: it was so at that moment.
        let mut seen = self.word.load(Relaxed);
        loop {
            let Some(new) = with(seen) else { return Posted::Closed };
            // ORDERING: AcqRel, pairs with the swap in `take` or `close`, both halves. Also where the tag is set already:
            //   the owner must see what *this* poster did before. A failed exchange is a guess again.
            match self.word.compare_exchange_weak(seen, new, AcqRel, Relaxed) {
                Ok(before) if before.is_null() => return Posted::First,
                Ok(before) if before.addr() & CLOSED == 0 => return Posted::Joined,
                Ok(_) => return Posted::Closed,
                Err(now) => seen = now,
            }
        }
    }
}

impl Default for Inbox {
    fn default() -> Inbox {
        Inbox::new()
    }
}

/// What was in an inbox.
#[derive(Debug)]
#[must_use = "calls are run when this is dropped, but kinds are lost"]
pub struct Taken<'m> {
    /// What was asked for.
    pub kinds: Kinds,
    /// The calls, in the order in which they were posted.
    pub calls: Calls<'m>,
}

impl<'m> Taken<'m> {
    /// What `word`, which was in an inbox until now, stands for.
    fn of(word: *mut CallNode, masked: &'m Masked) -> Taken<'m> {
        Taken { kinds: Kinds(word.addr() & Kinds::BITS), calls: Calls::in_order(untagged(word), masked) }
    }
}

/// Calls that were taken from an inbox, in the order in which they were posted. Dropping it runs them, so that no
/// caller waits for ever.
///
/// - CA1: `first` is null or a node that was taken from an inbox and has not been run; its `next` likewise.
pub struct Calls<'m> {
    first: *mut CallNode,
    masked: &'m Masked,
}

impl<'m> Calls<'m> {
    /// `newest` is a list as it was taken from an inbox.
    #[inline]
    fn in_order(newest: *mut CallNode, masked: &'m Masked) -> Calls<'m> {
        let Some(node) = NonNull::new(newest) else { return Calls { first: newest, masked } };
        // SAFETY: by IN2 valid, and ours alone since the swap that took the list.
        let earlier = unsafe { CallNode::next(node) };
        // Most often it is the only one.
        let first = if earlier.is_null() { newest } else { Self::turned_round(node) };
        Calls { first, masked }
    }

    /// The list that begins with `newest`, as it was taken from an inbox, in the other order.
    #[inline(never)]
    fn turned_round(newest: NonNull<CallNode>) -> *mut CallNode {
        let mut first = ptr::null_mut();
        let mut rest = Some(newest);
        while let Some(node) = rest {
            // SAFETY: by IN2 valid, and ours alone since the swap that took the list.
            let next = unsafe { CallNode::next(node) };
            // SAFETY: as above.
            unsafe { CallNode::set_next(node, first) };
            first = node.as_ptr();
            rest = NonNull::new(next);
        }
        first
    }

    /// Whether nothing is left to run.
    pub fn is_empty(&self) -> bool {
        self.first.is_null()
    }
}

impl Drop for Calls<'_> {
    #[inline]
    fn drop(&mut self) {
        while let Some(node) = NonNull::new(self.first) {
            // SAFETY: valid and ours by CA1.
            self.first = unsafe { CallNode::next(node) };
            // SAFETY: as above; no longer reachable from `self`, so it is run once and not touched again.
            unsafe { CallNode::run(node, self.masked) };
        }
    }
}

impl fmt::Debug for Calls<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "Calls(none)" } else { "Calls(some)" })
    }
}

fn untagged(word: *mut CallNode) -> *mut CallNode {
    word.map_addr(|address| address & !TAGS)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use percpu::hosted;

    use super::*;

    #[test]
    fn only_the_first_post_sends() {
        let (inbox, masked) = (Inbox::new(), hosted::masked());
        assert_eq!(inbox.post(Kind::Alive), Posted::First);
        assert_eq!(inbox.post(Kind::Alive), Posted::Joined);
        assert_eq!(inbox.post(Kind::Rendezvous), Posted::Joined);
        let taken = inbox.take(&masked);
        assert_eq!(taken.kinds, [Kind::Rendezvous, Kind::Alive].into_iter().collect());
        assert!(taken.calls.is_empty());
        assert!(inbox.take(&masked).kinds.is_empty());
        assert_eq!(inbox.post(Kind::Reschedule), Posted::First);
    }

    #[test]
    fn a_closed_one_keeps_kinds_and_takes_no_calls() {
        let (inbox, masked) = (Inbox::closed(), hosted::masked());
        let node = CallNode::scoped(|_, _| (), ptr::null_mut());
        assert_eq!(inbox.post(Kind::Reschedule), Posted::Closed);
        // SAFETY: the node outlives the inbox's use of it, and is in no list.
        assert_eq!(unsafe { inbox.post_node(NonNull::from(&node)) }, Posted::Closed);
        let taken = inbox.take(&masked);
        assert_eq!((taken.kinds, taken.calls.is_empty()), (Kinds::from_iter([Kind::Reschedule]), true));
        // SAFETY: as above.
        assert_eq!(unsafe { inbox.post_node(NonNull::from(&node)) }, Posted::First);
        assert_eq!(inbox.post(Kind::Alive), Posted::Joined);
        let taken = inbox.close(&masked);
        assert_eq!((taken.kinds, taken.calls.is_empty()), (Kinds::from_iter([Kind::Alive]), false));
        drop(taken);
        assert!(node.is_done());
        assert_eq!(inbox.post(Kind::Alive), Posted::Closed);
    }

    #[test]
    fn kinds_print_by_name() {
        let kinds: Kinds = [Kind::Alive, Kind::Reschedule].into_iter().collect();
        assert_eq!(format!("{kinds:?}"), "{Reschedule, Alive}");
        assert!(!kinds.contains(Kind::Rendezvous));
    }
}

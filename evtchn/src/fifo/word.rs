//! [`EventWord`]: the flags and the link of one port, shared with Xen.
//!
//! | bit | name | set by | cleared by | means |
//! |---|---|---|---|---|
//! | 31 | PENDING | Xen | guest, as it takes the event; Xen, as the port is closed | an event waits |
//! | 30 | MASKED | guest | guest; Xen in `EVTCHNOP_unmask` | not to be queued |
//! | 29 | LINKED | Xen | guest, as it takes the word off its queue | it stands in a queue |
//! | 28 | BUSY | Xen | Xen | the link is being written, do not unmask |
//! | 16..0 | LINK | Xen | with LINKED | the next port in the queue, 0 at its tail |
//!
//! All changes are read-modify-writes. Progress: [`EventWord::take`] is lock-free (Xen sets a bit at most twice
//! meanwhile); [`EventWord::unmask`] waits for BUSY, which lasts a few steps of Xen's with its interrupts off.
#![forbid(unsafe_code)]

use xen_sys::abi::event_channel::{
    EVTCHN_FIFO_BUSY, EVTCHN_FIFO_LINK_MASK, EVTCHN_FIFO_LINKED, EVTCHN_FIFO_MASKED, EVTCHN_FIFO_PENDING,
};
use xen_sys::primitive::sync::atomic::{AtomicU32, Ordering};
use xen_sys::primitive::thread;

use crate::port::PortNr;

pub(crate) const PENDING: u32 = 1 << EVTCHN_FIFO_PENDING;
pub(crate) const MASKED: u32 = 1 << EVTCHN_FIFO_MASKED;
pub(crate) const LINKED: u32 = 1 << EVTCHN_FIFO_LINKED;
pub(crate) const BUSY: u32 = 1 << EVTCHN_FIFO_BUSY;
pub(crate) const LINK: u32 = EVTCHN_FIFO_LINK_MASK;

/// See the head of this file.
#[repr(transparent)]
pub(crate) struct EventWord(AtomicU32);

/// A word that was taken off its queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Off {
    /// What stands behind it in the queue.
    pub(super) next: Option<PortNr>,
    /// An event was taken with it. Otherwise it waits behind the mask, or was handled already.
    pub(super) event: bool,
}

/// What unmasking left to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "an event that came while the port was masked stays unseen until Xen queues it"]
pub(crate) enum Unmasked {
    /// Nothing.
    Done,
    /// An event waits, and only Xen can queue it: `EVTCHNOP_unmask`.
    AskXen,
}

impl EventWord {
    /// Masked, so that nothing is queued before somebody wants it.
    pub(super) fn new() -> EventWord {
        EventWord(AtomicU32::new(MASKED))
    }

    /// As new: the domain has begun another life.
    pub(super) fn reset(&self) {
        // ORDERING: Relaxed: Xen does not know the word in this life yet, and all other CPUs are parked.
        self.0.store(MASKED, Ordering::Relaxed);
    }

    /// Takes the word off its queue, and with it the event, if one waits that is not masked. One locked operation, one
    /// more for each change of Xen's that comes between.
    ///
    /// Clearing PENDING in the same step as LINKED loses nothing: Xen sets PENDING and then looks at LINKED, so an
    /// event that comes after this finds the word off its queue and puts it on one again.
    pub(super) fn take(&self) -> Off {
        // ORDERING: Relaxed, the exchange decides.
        let mut old = self.0.load(Ordering::Relaxed);
        loop {
            let event = old & (PENDING | MASKED) == PENDING;
            let new = old & !(LINKED | LINK | if event { PENDING } else { 0 });
            // ORDERING: Acquire, pairs with Xen's read-modify-writes of this word (event_fifo.c): with the setting of
            //   PENDING, so that the handler sees what the sender did first, and with the setting of LINK, so that the
            //   next word's content is there. No Release: that Xen finds `ready` as we left it follows from the acquire
            //   half of `Queues::take_ready`, which comes first.
            // Weakening fails in evtchn/tests/loom_fifo.rs.
            match self.0.compare_exchange_weak(old, new, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Off { next: PortNr::new(old & LINK), event },
                Err(now) => old = now,
            }
        }
    }

    /// The word as Xen has it.
    pub(crate) fn bits(&self) -> &AtomicU32 {
        &self.0
    }

    /// Masks the port. It may stay in a queue; its event then waits.
    pub(crate) fn mask(&self) {
        // ORDERING: Relaxed. Stops deliveries to come, orders nothing.
        self.0.fetch_or(MASKED, Ordering::Relaxed);
    }

    /// An event that was taken waits again, behind the mask.
    pub(crate) fn make_pending_masked(&self) {
        // ORDERING: Acquire, pairs with Xen's unmask for who moves the port, or ends an event of it: if it comes first, we see a slot
        //   that is not MOVING. What the sender did first goes along: every change of the word is a read-modify-write, so who takes the event next
        //   acquires what the sender's released.
        // UNTESTED: needs a CPU that had the port two moves ago, a mover and an ender of events at once.
        self.0.fetch_or(PENDING | MASKED, Ordering::Acquire);
    }

    /// An event that waits is forgotten.
    pub(crate) fn forget_pending(&self) {
        // ORDERING: Relaxed: who waits for it later comes through Xen, which orders.
        self.0.fetch_and(!PENDING, Ordering::Relaxed);
    }

    /// Unmasks the port, which is one of this CPU's. Not while it is BUSY: see `evtchn/tests/loom_fifo.rs`.
    pub(crate) fn unmask(&self) -> Unmasked {
        // ORDERING: Relaxed, the exchange decides.
        let mut old = self.0.load(Ordering::Relaxed);
        loop {
            if old & BUSY != 0 {
                thread::yield_now();
                // ORDERING: Relaxed, as above.
                old = self.0.load(Ordering::Relaxed);
                continue;
            }
            // ORDERING: Relaxed. The handler runs on this CPU; and as PENDING is in the same word no fence is needed:
            //   either Xen's setting of it comes first and we see it, or Xen finds the mask gone.
            match self.0.compare_exchange_weak(old, old & !MASKED, Ordering::Relaxed, Ordering::Relaxed) {
                // Still in a queue, it is taken off with its event. Otherwise only Xen can put it on one.
                Ok(_) if old & (MASKED | PENDING | LINKED) == MASKED | PENDING => return Unmasked::AskXen,
                Ok(_) => return Unmasked::Done,
                Err(now) => old = now,
            }
        }
    }

    /// Whether an event waits.
    pub(crate) fn is_pending_racy(&self) -> bool {
        self.bits_racy() & PENDING != 0
    }

    /// Whether it is masked.
    pub(crate) fn is_masked_racy(&self) -> bool {
        self.bits_racy() & MASKED != 0
    }

    /// Whether it stands in a queue, also after its port was closed: such a port number is not given out again before
    /// the queue's CPU has taken it off.
    pub(crate) fn is_linked_racy(&self) -> bool {
        self.bits_racy() & LINKED != 0
    }

    fn bits_racy(&self) -> u32 {
        // ORDERING: Relaxed, for show, and for loops that look again.
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn word(bits: u32) -> EventWord {
        EventWord(AtomicU32::new(bits))
    }

    fn bits(word: &EventWord) -> u32 {
        word.bits_racy()
    }

    #[test]
    fn forgetting_an_event_leaves_all_else() {
        let word = word(PENDING | MASKED | LINKED | 77);
        word.forget_pending();
        assert_eq!(bits(&word), MASKED | LINKED | 77);
    }

    #[test]
    fn taking_leaves_what_is_not_ours() {
        let cases = [
            // before, after, next, event
            (PENDING | LINKED | 7, 0, Some(7), true),
            (PENDING | LINKED, 0, None, true),
            (PENDING | MASKED | LINKED | 5, PENDING | MASKED, Some(5), false),
            (LINKED | 9, 0, Some(9), false),
            (PENDING | LINKED | BUSY | LINK, BUSY, Some(LINK), true),
        ];
        for (before, after, next, event) in cases {
            let word = word(before);
            assert_eq!(word.take(), Off { next: next.and_then(PortNr::new), event }, "{before:#x}");
            assert_eq!(bits(&word), after, "{before:#x}");
        }
    }

    #[test]
    fn unmasking_asks_xen_only_for_what_waited_behind_the_mask() {
        for (before, after, answer) in [
            (MASKED, 0, Unmasked::Done),
            (MASKED | PENDING, PENDING, Unmasked::AskXen),
            (MASKED | PENDING | LINKED | 3, PENDING | LINKED | 3, Unmasked::Done),
            // It was not masked: whoever set PENDING has queued it.
            (PENDING | LINKED, PENDING | LINKED, Unmasked::Done),
            (0, 0, Unmasked::Done),
        ] {
            let word = word(before);
            assert_eq!(word.unmask(), answer, "{before:#x}");
            assert_eq!(bits(&word), after, "{before:#x}");
        }
    }

    #[test]
    fn a_new_word_is_masked() {
        let word = EventWord::new();
        assert!(word.is_masked_racy() && !word.is_pending_racy() && !word.is_linked_racy());
        assert_eq!(word.unmask(), Unmasked::Done);
        word.mask();
        assert_eq!(bits(&word), MASKED);
        let word = self::word(PENDING | LINKED | 4);
        assert!(word.is_pending_racy() && word.is_linked_racy());
        word.reset();
        assert_eq!(bits(&word), MASKED);
    }
}

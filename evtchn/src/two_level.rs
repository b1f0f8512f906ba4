//! [`TwoLevel`]: the 2-level ABI. PENDING and MASKED bits of all ports in `shared_info`, a selector word in each
//! `vcpu_info` that says which words of them to look at.
//!
//! Pending bits belong to the whole domain, so each CPU keeps the set of ports that are its own, [`OwnPorts`], and
//! looks at no others.
//!
//! # Cache lines touched in an upcall
//! | line | read | written | who else writes it |
//! |---|---|---|---|
//! | own `vcpu_info` | yes | yes | Xen |
//! | own [`OwnPorts`] | yes | no | whoever binds a device port here |
//! | `shared_info` MASKED words with own ports in them | yes | for late and muted ports | whoever masks, unmasks or binds |
//! | `shared_info` PENDING words with own ports in them | yes | one bit for each event | Xen and every other CPU |
//!
//! The last one is the ABI's price, and the reason for the FIFO ABI. A word in which this CPU owns nothing is not
//! read at all, which matters after registering a `vcpu_info`: Xen sets all 64 selector bits then.
//!
//! # How no event is lost
//! Xen sets PENDING and stops if it was set; then, if the port is not MASKED, sets the selector bit and stops if it
//! was set; then sets `upcall_pending` and kicks the vcpu (`event_2l.c`). We undo it in the opposite order: clear
//! `upcall_pending`, take the selector, clear PENDING, run the handler. Whatever Xen does in between leads to another
//! pass.
#![forbid(unsafe_code)]

use core::hint::black_box;

use percpu::{Masked, Quiesced};
use xen_sys::abi::xen::{SharedInfo, VcpuInfo};
use xen_sys::primitive::sync::atomic::{AtomicU64, Ordering, fence};

use crate::counters::Counter;
use crate::port::PortNr;

/// Words of 64 ports. Fewer where every atomic costs: loom models each of them, Miri watches each.
pub(crate) const WORDS: usize = if cfg!(loom) {
    2
} else if cfg!(miri) {
    4
} else {
    64
};

/// Ports that the ABI reaches, the invalid port 0 included.
pub(crate) const CAPACITY: usize = WORDS * u64::BITS as usize;

/// A port's word, and its bit in that word.
struct Place {
    word: usize,
    bit: u64,
}

impl Place {
    /// `None` if `nr` lies beyond the ABI.
    fn of(nr: PortNr) -> Option<Place> {
        if nr.index() >= CAPACITY {
            return None;
        }
        Some(Place { word: nr.index() / 64, bit: 1 << (nr.index() % 64) })
    }
}

/// The ports that a CPU owns, or has owned and may still be told of (`moving.rs`).
///
/// Bits are written by the CPU itself when it binds its intents, and by any CPU that binds a device port here; read in
/// the CPU's own upcall. Suspend: *rebuilt*.
pub(crate) struct OwnPorts {
    mine: [AtomicU64; WORDS],
}

impl OwnPorts {
    pub(crate) fn new() -> OwnPorts {
        OwnPorts { mine: core::array::from_fn(|_| AtomicU64::new(0)) }
    }

    // ORDERING: Relaxed in all. A CPU that adds a device port here unmasks it afterwards. An upcall that is caused
    // by this port acquires that through the selector (unmask, then Xen's delivery, then our swap); one that comes
    // for another reason and misses the bit leaves PENDING set, and the port's own selector bit is yet to come.

    pub(crate) fn add(&self, nr: PortNr) {
        if let Some(at) = Place::of(nr) {
            self.mine[at.word].fetch_or(at.bit, Ordering::Relaxed);
        }
    }

    pub(crate) fn remove(&self, nr: PortNr) {
        if let Some(at) = Place::of(nr) {
            self.mine[at.word].fetch_and(!at.bit, Ordering::Relaxed);
        }
    }

    pub(crate) fn clear(&self, _masked: &Masked) {
        // Opaque, so that it stays a loop: after a restore all code is cold, and costs by its length.
        for word in black_box(&self.mine[..]) {
            word.store(0, Ordering::Relaxed);
        }
    }
}

/// See the head of this file. A view of the domain's bits, for as long as the page is lent.
#[derive(Clone, Copy)]
pub(crate) struct TwoLevel<'a> {
    shared: &'a SharedInfo,
}

impl<'a> TwoLevel<'a> {
    pub(crate) fn new(shared: &'a SharedInfo) -> TwoLevel<'a> {
        TwoLevel { shared }
    }

    /// Masks every port of the domain. At a fresh boot Xen leaves all of them unmasked.
    pub(crate) fn mask_all(self, _quiesced: &Quiesced) {
        for word in self.shared.evtchn_mask.iter().take(WORDS) {
            // ORDERING: Relaxed. No port is bound yet, and no other CPU is about.
            word.store(!0, Ordering::Relaxed);
        }
    }

    /// Masks `nr`. An upcall that looked before may still be handling its event, on the CPU that owns it.
    pub(crate) fn mask_port(self, nr: PortNr) {
        if let Some(at) = Place::of(nr) {
            // ORDERING: Relaxed. Stops deliveries to come, orders nothing.
            self.shared.evtchn_mask[at.word].fetch_or(at.bit, Ordering::Relaxed);
        }
    }

    /// An event that was taken waits again, behind the mask.
    pub(crate) fn make_pending_masked(self, nr: PortNr) {
        if let Some(at) = Place::of(nr) {
            // ORDERING: Relaxed. What the sender did first goes along: every change of the PENDING word is a read-modify-write, so
            //   who takes the event next acquires what the sender's released.
            self.shared.evtchn_pending[at.word].fetch_or(at.bit, Ordering::Relaxed);
            // ORDERING: AcqRel, pairs with Xen's unmask for who moves the port, or ends an event of it. We before it: the release half
            //   shows it PENDING, and it tells the new CPU. It before us: the acquire half shows us a slot that is not MOVING, and we ask Xen.
            // UNTESTED: the models let Xen's unmask be a fence, as it is.
            self.shared.evtchn_mask[at.word].fetch_or(at.bit, Ordering::AcqRel);
        }
    }

    /// An event that waits on `nr` is forgotten. Whether the ABI has such a port.
    pub(crate) fn forget_pending(self, nr: PortNr) -> bool {
        // ORDERING: Relaxed: who waits for it later comes through Xen, which orders.
        Place::of(nr).map(|at| self.shared.evtchn_pending[at.word].fetch_and(!at.bit, Ordering::Relaxed)).is_some()
    }

    /// Unmasks `nr`, which this CPU owns, and makes an event that came meanwhile pending here again. Two locked
    /// operations and a fence; a port of another CPU needs `EVTCHNOP_unmask`.
    pub(crate) fn unmask_own(self, _masked: &Masked, flags: &VcpuInfo, nr: PortNr) {
        let Some(at) = Place::of(nr) else { return };
        // ORDERING: Relaxed, ordered by the fence.
        self.shared.evtchn_mask[at.word].fetch_and(!at.bit, Ordering::Relaxed);
        // ORDERING: SeqCst, "publish mine, then look at yours": we clear MASKED, then look at PENDING; Xen sets
        // PENDING, then looks at MASKED. One of us sees the other's bit, so the event is raised by one of us, or by
        // both, which is harmless. On x86 each side's locked operation is the fence already.
        // Weakening fails in evtchn/tests/loom_upcall.rs.
        fence(Ordering::SeqCst);
        // ORDERING: Relaxed, ordered by the fence.
        if self.shared.evtchn_pending[at.word].load(Ordering::Relaxed) & at.bit != 0 {
            // ORDERING: Relaxed twice: read back by this CPU. Xen's own deliveries in between are read-modify-writes of
            // the same words and lose nothing.
            flags.evtchn_pending_sel.fetch_or(1 << at.word, Ordering::Relaxed);
            flags.evtchn_upcall_pending.store(1, Ordering::Relaxed);
        }
    }

    /// Whether an event waits on `nr`.
    pub(crate) fn is_pending_racy(self, nr: PortNr) -> bool {
        // ORDERING: Relaxed, for show.
        Place::of(nr).is_some_and(|at| self.shared.evtchn_pending[at.word].load(Ordering::Relaxed) & at.bit != 0)
    }

    /// Whether `nr` is masked.
    pub(crate) fn is_masked_racy(self, nr: PortNr) -> bool {
        // ORDERING: Relaxed, for show.
        Place::of(nr).is_some_and(|at| self.shared.evtchn_mask[at.word].load(Ordering::Relaxed) & at.bit != 0)
    }

    /// Takes every event that is pending for this CPU and hands its port to `handle`, PENDING cleared. Returns when a
    /// pass ended with nothing newly pending.
    ///
    /// A pass hands out each port at most once, so a port that fires without end delays others by one event each time. How
    /// long it may keep this function from returning is `storm.rs`' to say.
    #[inline(always)]
    pub(crate) fn take_pending(
        self,
        masked: &Masked,
        flags: &VcpuInfo,
        own: &OwnPorts,
        passes: &Counter,
        mut handle: impl FnMut(PortNr),
    ) {
        loop {
            passes.bump_masked(masked);
            self.pass(masked, flags, own, &mut handle);
            // ORDERING: Relaxed. Missing a 1 is harmless: who unmasks upcalls looks again.
            if flags.evtchn_upcall_pending.load(Ordering::Relaxed) == 0 {
                return;
            }
        }
    }

    /// Clears `upcall_pending` and takes the words that the selector names.
    pub(crate) fn take_selector(_masked: &Masked, flags: &VcpuInfo) -> u64 {
        // ORDERING: Relaxed, carried by the release half of the swap below.
        flags.evtchn_upcall_pending.store(0, Ordering::Relaxed);
        // ORDERING: AcqRel, pairs with Xen setting this vcpu's selector bit (event_2l.c, evtchn_2l_set_pending).
        //   Xen after us: the release half puts our clear before Xen's `upcall_pending = 1`, so no upcall is lost.
        //   Xen before us: the acquire half shows us the PENDING bits that it set first.
        // Weakening either half fails in evtchn/tests/loom_upcall.rs.
        flags.evtchn_pending_sel.swap(0, Ordering::AcqRel)
    }

    /// One pass over what the selector names now.
    #[inline(always)]
    fn pass(self, masked: &Masked, flags: &VcpuInfo, own: &OwnPorts, handle: &mut impl FnMut(PortNr)) {
        let selector = Self::take_selector(masked, flags);
        let mut words = selector & (!0 >> (64 - WORDS));
        while words != 0 {
            let word = words.trailing_zeros() as usize;
            words &= words - 1;
            let (mine, pending, mask) =
                (&own.mine[word], &self.shared.evtchn_pending[word], &self.shared.evtchn_mask[word]);
            // ORDERING: Relaxed, see `OwnPorts::add`.
            let own_now = mine.load(Ordering::Relaxed);
            if own_now == 0 {
                continue;
            }
            // ORDERING: Relaxed. What Xen set before the selector bit is visible since the swap; what it sets from here on it
            //   announces by the selector anew.
            let mut bits = pending.load(Ordering::Relaxed) & own_now & unmasked(mask);
            while bits != 0 {
                let bit = bits.trailing_zeros();
                bits &= bits - 1;
                // If it is not there, the port has just been moved, and its new CPU was faster.
                if let Some(nr) = port_at(word, bit).filter(|_| take(pending, bit)) {
                    handle(nr);
                }
                if bits == 0 {
                    break;
                }
                // A handler may have masked or unbound another port of this word.
                // ORDERING: Relaxed, see `OwnPorts::add`.
                bits &= mine.load(Ordering::Relaxed) & unmasked(mask);
            }
        }
    }
}

/// Takes the event of `bit` in a PENDING word. Whether it was there.
#[inline(always)]
fn take(pending: &AtomicU64, bit: u32) -> bool {
    // ORDERING: Acquire, pairs with Xen setting PENDING: if the sender found it set already, this is the only operation that
    //   orders its work before our handler.
    // Weakening fails in evtchn/tests/loom_upcall.rs.
    pending.fetch_and(!(1 << bit), Ordering::Acquire) & (1 << bit) != 0
}

/// The ports of a word that are not masked.
fn unmasked(mask: &AtomicU64) -> u64 {
    // ORDERING: Acquire, pairs with Xen's unmask at the end of a move: who finds the port unmasked finds its new CPU, also where the
    //   event is an old one. On x86 it costs nothing.
    // Weakening fails in evtchn/tests/loom_move.rs.
    !mask.load(Ordering::Acquire)
}

/// The port of `bit` in `word`; `None` for port 0, which Xen never raises.
fn port_at(word: usize, bit: u32) -> Option<PortNr> {
    PortNr::new(u32::try_from(word).ok()? * u64::BITS + bit)
}

#[cfg(all(test, not(loom)))]
#[path = "two_level_tests.rs"]
mod tests;

//! [`Queues`]: one CPU's sixteen queues of pending ports, one for each priority, and taking events off them.
//!
//! A queue is a chain through the event words. Xen appends; this CPU takes off at the head. Xen writes a queue's first
//! port into the control block, but only where it found the queue empty; from there on the chain is followed, and
//! `heads` remembers how far.
//!
//! | field | written by | read by | suspend |
//! |---|---|---|---|
//! | control block: ready | Xen sets bits; this CPU takes them | this CPU | *rebuilt* by this CPU |
//! | control block: heads | Xen | this CPU | *rebuilt* by this CPU |
//! | heads | this CPU, upcalls masked | this CPU | *rebuilt* by this CPU |
//!
//! # Cache lines touched in an upcall
//! | line | read | written | who else writes it |
//! |---|---|---|---|
//! | own `vcpu_info` | yes | yes | Xen |
//! | control block, first line (ready, queues 0 to 13) | yes | yes | Xen, where a queue was empty |
//! | heads | yes | yes | nobody |
//! | the port's event word, with 15 neighbours | yes | one operation for each event | Xen for each event of any of the 16 |
#![forbid(unsafe_code)]

use core::ptr::NonNull;

use crossbeam_utils::CachePadded;
use percpu::Masked;
use xen_sys::abi::event_channel::{EVTCHN_FIFO_MAX_QUEUES, EvtchnFifoControlBlock};
use xen_sys::abi::xen::VcpuInfo;
use xen_sys::primitive::sync::atomic::{AtomicU32, Ordering};

use super::array::EventArray;
use super::word::LINK;
use crate::counters::Counter;
use crate::lasting::Lasting;
use crate::port::{Incarnation, PortNr};

const NR: usize = EVTCHN_FIFO_MAX_QUEUES as usize;

/// See the head of this file.
pub(crate) struct Queues {
    /// Padded to 128 bytes, and so inside one page, as Xen wants it.
    block: Lasting<CachePadded<EvtchnFifoControlBlock>>,
    /// For each queue the port to take off next; 0: where the control block says.
    heads: CachePadded<[AtomicU32; NR]>,
    /// The life in which Xen was told of the block. Written by this CPU; for vCPU 0 while all others are parked.
    told: AtomicU32,
}

impl Queues {
    pub(crate) fn new() -> Queues {
        Queues {
            block: Lasting::new(CachePadded::new(EvtchnFifoControlBlock::new())),
            heads: CachePadded::new(core::array::from_fn(|_| AtomicU32::new(0))),
            told: AtomicU32::new(Incarnation::NONE.get()),
        }
    }

    /// The control block, empty, for Xen to be told of it in `life`. `None` if it was told already.
    pub(crate) fn introduce(&self, life: Incarnation) -> Option<NonNull<EvtchnFifoControlBlock>> {
        // ORDERING: Relaxed in all: nobody else looks before the hypercall that tells Xen.
        if self.told.swap(life.get(), Ordering::Relaxed) == life.get() {
            return None;
        }
        self.block.ready.store(0, Ordering::Relaxed);
        for head in self.block.head.iter().chain(&*self.heads) {
            head.store(0, Ordering::Relaxed);
        }
        Some(self.block.address().cast())
    }

    /// The ready bits that Xen sets.
    pub(crate) fn ready(&self) -> &AtomicU32 {
        &self.block.ready
    }

    /// Xen refused.
    pub(crate) fn forget(&self) {
        // ORDERING: Relaxed, as above.
        self.told.store(Incarnation::NONE.get(), Ordering::Relaxed);
    }

    /// Clears `upcall_pending`, and leaves the queues to who looks at them when this CPU is ready.
    pub(crate) fn drop_pending(_masked: &Masked, flags: &VcpuInfo) {
        // ORDERING: Relaxed: nothing is taken because of it.
        flags.evtchn_upcall_pending.store(0, Ordering::Relaxed);
    }

    /// Takes every event that is pending for this CPU, the highest priority first, and hands its port to `handle`,
    /// PENDING cleared. Returns when nothing was pending at the end of a pass.
    ///
    /// Within a queue a port that fires again goes behind all that were there before it. How long it may keep this function from
    /// returning is `storm.rs`' to say.
    ///
    /// Costs a locked operation for each event, and one each time that a queue is found ready. Lock-free.
    #[inline(always)]
    pub(crate) fn take_pending(
        &self,
        masked: &Masked,
        flags: &VcpuInfo,
        array: &EventArray,
        passes: &Counter,
        mut handle: impl FnMut(PortNr),
    ) {
        loop {
            passes.bump_masked(masked);
            // ORDERING: Relaxed, carried by the release half of the swap in `take_ready`.
            flags.evtchn_upcall_pending.store(0, Ordering::Relaxed);
            let mut ready = self.take_ready();
            while ready != 0 {
                // The lowest bit is the highest priority.
                let queue = ready.trailing_zeros();
                self.take_from(queue, array, &mut ready, &mut handle);
            }
            // ORDERING: Relaxed. Missing a 1 is harmless: who unmasks upcalls looks again.
            if flags.evtchn_upcall_pending.load(Ordering::Relaxed) == 0 {
                return;
            }
        }
    }

    /// The queues that are no longer empty.
    fn take_ready(&self) -> u32 {
        // ORDERING: AcqRel, pairs with Xen setting a queue's bit (event_fifo.c, evtchn_fifo_set_pending).
        //   Xen after us: the release half puts our clearing of upcall_pending before Xen's `upcall_pending = 1`, so no
        //   upcall is lost.
        //   Xen before us: the acquire half shows us the head that it wrote first.
        // Weakening either half fails in evtchn/tests/loom_fifo.rs.
        self.block.ready.swap(0, Ordering::AcqRel)
    }

    /// Takes ports off `queue`, down to its end or until another queue has become ready, which may come before it. `ready` has the
    /// queues that are not empty, before and after.
    #[inline(always)]
    fn take_from(&self, queue: u32, array: &EventArray, ready: &mut u32, handle: &mut impl FnMut(PortNr)) {
        let block = &*self.block;
        let (Some(cached), Some(written)) = (self.heads.get(queue as usize), block.head.get(queue as usize)) else {
            // Xen sets no bit beyond the queues.
            *ready &= !(1 << queue);
            return;
        };
        // ORDERING: Relaxed, this CPU's own.
        let mut head = match cached.load(Ordering::Relaxed) {
            // ORDERING: Relaxed: what Xen wrote before it set the queue's bit is visible since the swap.
            0 => written.load(Ordering::Relaxed),
            head => head,
        };
        // Xen writes no port that a link has no room for. So the array's end need not be looked for at each port.
        head &= LINK;
        while let Some(nr) = PortNr::new(head) {
            // A queue that Xen calls ready begins with a port of the array. If not, it is left until it is ready anew.
            let Some(word) = array.word(nr) else {
                head = 0;
                break;
            };
            let off = word.take();
            head = off.next.map_or(0, PortNr::get);
            if off.event {
                handle(nr);
            }
            // ORDERING: Relaxed, a hint: what is missed now is found in the next pass.
            if block.ready.load(Ordering::Relaxed) != 0 {
                break;
            }
        }
        // Before the next are added: this queue is ready anew if Xen found it empty, and its first port stands in the block.
        if head == 0 {
            *ready &= !(1 << queue);
        }
        // ORDERING: Relaxed, this CPU's own.
        cached.store(head, Ordering::Relaxed);
        // ORDERING: Relaxed, a hint, as above.
        if block.ready.load(Ordering::Relaxed) != 0 {
            *ready |= self.take_ready();
        }
    }
}

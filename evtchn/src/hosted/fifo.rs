//! Xen's side of the FIFO ABI, step by step as `event_fifo.c`: raising, linking, unmasking, and the switch to it.
//!
//! x86's locked operations are full fences; here they are `AcqRel` at most, so a model sees less than Xen guarantees.

use alloc::vec;
use alloc::vec::Vec;
use core::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use percpu::CpuId;
use xen_sys::abi::event_channel::{EVTCHN_FIFO_PRIORITY_DEFAULT, EvtchnFifoControlBlock};
use xen_sys::abi::xen::VcpuInfo;
use xen_sys::errno::Errno;
use xen_sys::primitive::sync::atomic::AtomicU32;
use xen_sys::primitive::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::chunks::PORTS;
use crate::fifo::array::EventPage;
use crate::fifo::word::{BUSY, LINK, LINKED, MASKED, PENDING};
use crate::hypervisor::Place;

// Held while Xen works on words and control blocks, so the model has to know of it.
#[cfg(loom)]
type QueueLock<T> = loom::sync::Mutex<T>;
#[cfg(shuttle)]
type QueueLock<T> = shuttle::sync::Mutex<T>;
#[cfg(not(any(loom, shuttle)))]
type QueueLock<T> = Mutex<T>;

/// Something of the guest's that Xen was told of.
///
/// - LE1: it is there for as long as anything is raised, by the contract of `init_control` and `expand_array`.
struct Lent<T>(NonNull<T>);

// SAFETY: what is lent is made of atomics.
unsafe impl<T: Sync> Send for Lent<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Lent<T> {}

impl<T> Lent<T> {
    fn at(place: Place) -> Lent<T> {
        let address = usize::try_from(place.mfn).expect("addresses fit") + place.offset as usize;
        let pointer = core::ptr::with_exposed_provenance_mut(address);
        Lent(NonNull::new(pointer).expect("places are not null"))
    }
}

/// What Xen keeps of a port.
#[derive(Clone, Copy)]
struct Evtchn {
    priority: usize,
    /// The queue that it was in last.
    last: (usize, usize),
    /// Raised before its word was there.
    kept: bool,
}

const FRESH: Evtchn = Evtchn {
    priority: EVTCHN_FIFO_PRIORITY_DEFAULT as usize,
    last: (0, EVTCHN_FIFO_PRIORITY_DEFAULT as usize),
    kept: false,
};

#[derive(Default)]
struct State {
    on: bool,
    pages: Vec<Lent<EventPage>>,
    blocks: Vec<Option<Lent<EvtchnFifoControlBlock>>>,
    ports: Vec<Evtchn>,
}

/// The last port of each of a vcpu's queues; 0: none.
type Tails = [u32; 16];

/// See the head of this file.
pub(super) struct XenFifo {
    state: Mutex<State>,
    queues: Vec<QueueLock<Tails>>,
}

fn lock<T>(lock: &QueueLock<T>) -> impl core::ops::DerefMut<Target = T> + '_ {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl XenFifo {
    pub(super) fn new(nr_cpus: usize, nr_ports: usize) -> XenFifo {
        let fifo = XenFifo { state: Mutex::default(), queues: (0..nr_cpus).map(|_| QueueLock::new([0; 16])).collect() };
        fifo.reset(nr_ports);
        fifo
    }

    /// A new domain: 2-level, nothing known.
    pub(super) fn reset(&self, nr_ports: usize) {
        let blocks = self.queues.iter().map(|_| None).collect();
        *self.state() = State { on: false, pages: Vec::new(), blocks, ports: vec![FRESH; nr_ports] };
        for queue in &self.queues {
            *lock(queue) = [0; 16];
        }
    }

    // std's lock and not loom's: nothing that loom watches happens while it is held.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_on(&self) -> bool {
        self.state().on
    }

    fn word(&self, port: u32) -> Option<&AtomicU32> {
        let state = self.state();
        let page = state.pages.get(port as usize / PORTS)?;
        // SAFETY: LE1; the borrow is of the guest's memory and not of the list.
        let page = unsafe { page.0.as_ref() };
        page.words().get(port as usize % PORTS).map(|word| word.bits())
    }

    pub(super) fn bits(&self, port: u32) -> u32 {
        self.word(port).map_or(0, |word| word.load(Relaxed))
    }

    pub(super) fn is_pending(&self, port: u32) -> bool {
        self.bits(port) & PENDING != 0 || self.state().ports.get(port as usize).is_some_and(|evtchn| evtchn.kept)
    }

    pub(super) fn is_masked(&self, port: u32) -> bool {
        // Without a word it is as good as masked.
        self.word(port).is_none_or(|word| word.load(Relaxed) & MASKED != 0)
    }

    pub(super) fn is_linked(&self, port: u32) -> bool {
        self.bits(port) & LINKED != 0
    }

    /// A port is given out.
    pub(super) fn open(&self, port: u32) {
        self.state().ports[port as usize] = FRESH;
    }

    pub(super) fn priority(&self, port: u32) -> usize {
        self.state().ports[port as usize].priority
    }

    pub(super) fn set_priority(&self, port: u32, priority: usize) {
        self.state().ports[port as usize].priority = priority;
    }

    /// Returns whether the domain has been switched just now.
    pub(super) fn init_control(&self, cpu: CpuId, at: Place) -> Result<bool, Errno> {
        if !at.offset.is_multiple_of(8) || at.offset > 4096 - 72 {
            return Err(Errno::EINVAL);
        }
        let mut state = self.state();
        let block = state.blocks.get_mut(cpu.index()).ok_or(Errno::ENOENT)?;
        if block.is_some() {
            return Err(Errno::EINVAL);
        }
        *block = Some(Lent::at(at));
        Ok(!core::mem::replace(&mut state.on, true))
    }

    /// `told` says which vcpu a port is bound to.
    pub(super) fn expand_array(
        &self,
        at: Place,
        told: impl Fn(u32) -> Option<CpuId>,
        flags: &[VcpuInfo],
    ) -> Result<(), Errno> {
        let first = {
            let mut state = self.state();
            if !state.on {
                return Err(Errno::EOPNOTSUPP);
            }
            if at.offset != 0 {
                return Err(Errno::EINVAL);
            }
            state.pages.push(Lent::at(at));
            (state.pages.len() - 1) * PORTS
        };
        // What was raised before the words were there.
        for port in first..first + PORTS {
            let kept = self.state().ports.get_mut(port).is_some_and(|evtchn| core::mem::take(&mut evtchn.kept));
            let port = u32::try_from(port).expect("few ports");
            if let (true, Some(cpu)) = (kept, told(port)) {
                self.set_pending(cpu, port, &flags[cpu.index()]);
            }
        }
        Ok(())
    }

    /// A 2-level PENDING bit at the switch.
    pub(super) fn keep(&self, port: u32) {
        self.state().ports[port as usize].kept = true;
    }

    /// Returns whether the vcpu was kicked.
    pub(super) fn set_pending(&self, cpu: CpuId, port: u32, flags: &VcpuInfo) -> bool {
        let Some(word) = self.word(port) else {
            self.keep(port);
            return false;
        };
        let cpu = cpu.index();
        let last = |fifo: &XenFifo| fifo.state().ports[port as usize];
        // Both queues are locked before anything is looked at, the lower vcpu's first.
        let (mut tails, priority, old) = loop {
            let evtchn = last(self);
            let old = evtchn.last;
            let first = lock(&self.queues[cpu.min(old.0)]);
            let second = (cpu != old.0).then(|| lock(&self.queues[cpu.max(old.0)]));
            if last(self).last == old {
                break ((first, second), evtchn.priority, old);
            }
        };
        word.fetch_or(PENDING, AcqRel);
        if self.state().blocks[cpu].is_none() {
            // "control block missing": the event is dropped.
            return false;
        }
        if word.load(Acquire) & MASKED != 0 || word.fetch_or(LINKED, AcqRel) & LINKED != 0 {
            return false;
        }
        let (low, high) = (&mut *tails.0, tails.1.as_deref_mut());
        let (mine, theirs) = match high {
            None => (low, None),
            Some(high) if cpu < old.0 => (low, Some(high)),
            Some(high) => (high, Some(low)),
        };
        let old_tail = match theirs {
            Some(theirs) => &mut theirs[old.1],
            None => &mut mine[old.1],
        };
        // It was the last of its old queue, which is empty without it.
        if *old_tail == port {
            *old_tail = 0;
        }
        self.state().ports[port as usize].last = (cpu, priority);
        let tail = mine[priority];
        let linked = tail != 0 && self.word(tail).is_some_and(|tail| set_link(tail, port));
        mine[priority] = port;
        let state = self.state();
        let block = state.blocks[cpu].as_ref().expect("looked at above");
        // SAFETY: LE1; the borrow is of the guest's memory and not of the list.
        let block = unsafe { block.0.as_ref() };
        drop(state);
        if !linked {
            block.head[priority].store(port, Release);
        }
        drop(tails);
        if linked || block.ready.fetch_or(1 << priority, AcqRel) & (1 << priority) != 0 {
            return false;
        }
        flags.evtchn_upcall_pending.fetch_or(1, AcqRel) == 0
    }

    /// `EVTCHNOP_unmask`.
    pub(super) fn unmask(&self, cpu: CpuId, port: u32, flags: &VcpuInfo) {
        let Some(word) = self.word(port) else { return };
        word.fetch_and(!MASKED, AcqRel);
        if word.load(Acquire) & PENDING != 0 {
            self.set_pending(cpu, port, flags);
        }
    }

    /// Sets BUSY, or clears it, as while linking; returns whether the port was masked just then.
    pub(super) fn set_busy(&self, port: u32, busy: bool) -> bool {
        let word = self.word(port).expect("the array reaches all ports of a test");
        let before = if busy { word.fetch_or(BUSY, AcqRel) } else { word.fetch_and(!BUSY, AcqRel) };
        before & MASKED != 0
    }

    /// The port was closed.
    pub(super) fn clear_pending(&self, port: u32) {
        if let Some(word) = self.word(port) {
            word.fetch_and(!PENDING, AcqRel);
        }
    }
}

/// Whether `word` was LINKED still, and now links to `port`.
fn set_link(word: &AtomicU32, port: u32) -> bool {
    let try_once = |old: u32| {
        if old & LINKED == 0 {
            return Ok(false);
        }
        word.compare_exchange(old, old & !(BUSY | LINK) | port, AcqRel, Relaxed).map(|_| true)
    };
    match try_once(word.load(Acquire)) {
        Ok(linked) => return linked,
        Err(_) => word.fetch_or(BUSY, AcqRel),
    };
    let mut old = word.load(Acquire);
    for _ in 0..4 {
        match try_once(old) {
            Ok(true) => return true,
            Ok(false) => break,
            Err(now) => old = now,
        }
    }
    word.fetch_and(!BUSY, AcqRel);
    old & LINKED != 0
}

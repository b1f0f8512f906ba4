//! The upcall: from a pending event to its handler. Runs on the CPU that Xen interrupted, with upcalls masked.
//!
//! No lock, no allocation, and no line is written that another CPU writes, but for the PENDING bits of the 2-level ABI, which are
//! the domain's, its MASKED bits where an event ends late, and FIFO words of neighbours. The files of the ABIs list their lines;
//! besides, each event of a device port reads its slot and reads and writes its [`Action`](crate::Action), and each
//! upcall writes this CPU's counters and its passage.
//!
//! | instructions of the guest's own, one event of a device port, its handler's left out | 2-level | FIFO |
//! |---|---|---|
//! | the upcall's entry to the handler (15 of them the stub) | 125 | 130 |
//! | the handler to HYPERVISOR_iret (9 of them the stub) | 35 | 43 |
//! | each further event in the same upcall | 58 | 62 |
//!
//! Counted along the way of one event in `bench=self-event`, traced instruction by instruction; the last row from `bench=drain` with
//! k=1024, less the handler's 8. An intent's way is some 15 shorter.
//!
//! All of it is put where it is called (`inline(always)`): the way from the stub to a handler has no other call, and nothing is carried
//! over one.
//!
//! Progress: wait-free for each event; the whole returns once nothing is pending, which
//! no port can put off for long (`storm.rs`).
#![forbid(unsafe_code)]

use percpu::Masked;
use xen_sys::abi::xen::VcpuInfo;

use crate::action::EndOfEvent;
use crate::events::{CpuEvents, Events};
use crate::hypervisor::Hypervisor;
use crate::passage::Inside;
use crate::port::PortNr;
use crate::port_table::Found;

/// What an upcall came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Upcall {
    /// So many events were handled.
    Handled(u32),
    /// Nothing was pending. Normal: after registering a `vcpu_info`, and where two paths raised one event.
    Spurious,
    /// This CPU has bound nothing in this life of the domain, so nothing can be for it. Its flags were cleared.
    NotReady,
    /// No `shared_info` is attached, and nothing was touched. Does not happen while the contract of
    /// [`Events::attach`] is kept: a parked CPU has upcalls masked, or dozes, and does not come here.
    Detached,
}

impl<H: Hypervisor> Events<H> {
    /// Handles all that is pending for this CPU, whose registered `vcpu_info` is `flags`.
    /// Context: the upcall, or task with upcalls masked; not nested.
    ///
    /// The caller still has to look at `upcall_pending` once more after it has unmasked upcalls, or in the act.
    #[inline(always)]
    pub fn demux(&self, masked: &Masked, flags: &VcpuInfo) -> Upcall {
        let cpu = self.cpus.mine();
        cpu.counters.upcalls.bump_masked(masked);
        if cpu.table.ready() != self.incarnation() {
            cpu.counters.not_ready.bump_masked(masked);
            if !self.abi.is_attached() {
                return Upcall::Detached;
            }
            // The set of own ports is one of an earlier life, whose numbers may now be other CPUs' ports. Taking the
            // selector loses nothing: what this CPU will bind is masked until then, and looked at when unmasked.
            self.abi.drop_pending(masked, flags);
            return Upcall::NotReady;
        }
        let inside = cpu.passage.enter(masked);
        let before = cpu.counters.events.get();
        let handle = (|nr| self.dispatch(masked, cpu, &inside, nr), |nr| self.dispatch(masked, cpu, &inside, nr));
        let attached = self.abi.take_pending(masked, flags, &cpu.own, &cpu.counters.passes, handle);
        drop(inside);
        if attached.is_none() {
            return Upcall::Detached;
        }
        match cpu.counters.events.get().wrapping_sub(before) {
            0 => {
                cpu.counters.spurious.bump_masked(masked);
                Upcall::Spurious
            }
            events => Upcall::Handled(u32::try_from(events).unwrap_or(u32::MAX)),
        }
    }

    #[inline(always)]
    fn dispatch(&self, masked: &Masked, cpu: &CpuEvents, inside: &Inside<'_>, nr: PortNr) {
        cpu.counters.events.bump_masked(masked);
        if let Some(place) = cpu.table.place_of_intent(nr) {
            if let (Some(count), Some(handler)) = (cpu.counters.by_intent.get(place), self.handlers.at(place)) {
                count.bump_masked(masked);
                handler(masked);
            }
        } else if let Some(found) = self.devices.lookup(nr, inside) {
            if found.is_plain() {
                self.count_turn(masked, cpu, nr, found.action);
                found.action.run(masked);
            } else {
                self.dispatch_odd(masked, cpu, inside, nr, found);
            }
        } else {
            // Being unbound, which masks it (EV1).
            cpu.counters.unbound.bump_masked(masked);
        }
    }

    /// An event of a port that is late, being moved, or was moved.
    #[inline(never)]
    fn dispatch_odd(&self, masked: &Masked, cpu: &CpuEvents, inside: &Inside<'_>, nr: PortNr, found: Found<'_>) {
        if !found.action.is_on_racy(cpu.id) {
            return self.forward(masked, cpu, inside, nr);
        }
        match found.action.end() {
            EndOfEvent::AtOnce if !found.is_moving() => self.count_turn(masked, cpu, nr, found.action),
            end => {
                found.action.note_event();
                if end == EndOfEvent::Late {
                    found.action.begin_event();
                    // One that is being moved is masked already.
                    if !found.is_moving() {
                        self.abi.mask_port(nr);
                    }
                }
            }
        }
        found.action.run(masked);
    }
}

//! Moving a device port to another CPU while it fires, without losing an event or running two handlers at once.
//!
//! | step | what holds after it |
//! |---|---|
//! | MOVING stands in the slot, the port is masked; a grace period | nobody but the mover unmasks the port |
//! | it is masked again; a grace period | who found it unmasked in between has handled its event |
//! | it is in no queue | an event stays PENDING, and nobody is told |
//! | Xen tells the new CPU (`EVTCHNOP_bind_vcpu`), which looks at it from now on | |
//! | MOVING is taken away; Xen unmasks, or who has an event of it to end | what is PENDING, Xen tells the new CPU |
//! | a grace period | the old CPU, which may have been looking at the PENDING bit, has taken its event or left it |
//!
//! With the FIFO ABI the port may stand in the old CPU's queue, which has to be waited for: a port is told of from the queue
//! that it is in. With the 2-level ABI the old CPU may have been told before; Xen's unmask tells the new one anew.
//!
//! **The old CPU may be told long afterwards.** Xen looks up whom to tell before it sets PENDING (`evtchn_send`), and holds
//! no lock meanwhile that `EVTCHNOP_bind_vcpu` takes. A sender that loses its processor in between tells whoever had the port
//! then. So a CPU goes on looking at ports that it had, until they are unbound, and [`forward`](Events::forward)s what it
//! finds: `docs/decisions/0003-told-late.md`. Context: task.
#![forbid(unsafe_code)]

use percpu::{CpuId, Masked};

use crate::device::Binding;
use crate::error::DeviceError;
use crate::events::{CpuEvents, Events};
use crate::hypervisor::Hypervisor;
use crate::passage::{Grace, Inside};
use crate::port::PortNr;

/// How far it is.
enum Step {
    /// Sections that began before MOVING may still unmask.
    Settle,
    /// Sections that began before it was masked for good may have taken an event.
    Quiet,
    /// Masked, and waits to be in no queue.
    Unlink,
    /// The new CPU has it; the old one may still be handling an event.
    Drain,
    Over,
    /// Xen refused, or the new CPU has gone down.
    Failed(DeviceError),
}

/// A port on its way to another CPU. Dropped half way, it stays with the CPU that has it then.
#[must_use = "ask `is_over` until it is"]
pub struct Moving<'a, H: Hypervisor> {
    events: &'a Events<H>,
    binding: &'a mut Binding,
    to: CpuId,
    step: Step,
    grace: Grace,
}

impl<H: Hypervisor> Events<H> {
    /// An event that this CPU has taken, and is another's now: it is made pending again, and told to that one by Xen, or by who
    /// moves or unbinds the port, if somebody does, or who ends an event that came before. Costs a hypercall. Context: upcall.
    #[cold]
    pub(crate) fn forward(&self, masked: &Masked, cpu: &CpuEvents, inside: &Inside<'_>, nr: PortNr) {
        cpu.counters.forwarded.bump_masked(masked);
        self.abi.make_pending_masked(nr);
        // Looked up anew: if the mover has unmasked the port before we masked it, we see here that it is through.
        if self.devices.lookup(nr, inside).is_some_and(|found| !found.is_moving() && !found.action.is_unended()) {
            self.unmask_by_xen(nr);
        }
    }

    /// Begins to move a device port to `cpu`.
    ///
    /// # Errors
    /// `CpuNotReady`; `NotBound` after a restore. It stays where it is.
    ///
    /// # Panics
    /// If the domain has no such CPU.
    pub fn move_device<'a>(&'a self, binding: &'a mut Binding, cpu: CpuId) -> Result<Moving<'a, H>, DeviceError> {
        let port = binding.port;
        if port.incarnation != self.incarnation() {
            return Err(DeviceError::NotBound);
        }
        if !self.is_ready(cpu) {
            return Err(DeviceError::CpuNotReady { nr: port.nr, cpu });
        }
        let step = if binding.cpu == cpu {
            Step::Over
        } else {
            self.devices.set_moving(port.nr, true);
            // Now, and not only after the grace period: a port that fires without end would keep its CPU from passing.
            self.abi.mask_port(port.nr);
            Step::Settle
        };
        Ok(Moving { events: self, binding, to: cpu, step, grace: Grace::begin() })
    }
}

impl<H: Hypervisor> Moving<'_, H> {
    /// Whether the move is over: all events from now on are handled by the new CPU, and none is being handled elsewhere.
    /// Asked anew, it goes on. Context: task; never within a handler.
    ///
    /// # Errors
    /// `Route`: Xen refused, or `CpuNotReady`: the CPU went down; the port stays where it was, and works. `NotBound`: the domain was restored meanwhile.
    pub fn is_over(&mut self) -> Result<bool, DeviceError> {
        let (events, nr) = (self.events, self.binding.port.nr);
        if self.binding.port.incarnation != events.incarnation() {
            self.step = Step::Over;
            return Err(DeviceError::NotBound);
        }
        if let Step::Failed(error) = self.step {
            return Err(error);
        }
        if matches!(self.step, Step::Settle) {
            if !self.passed() {
                return Ok(false);
            }
            // Once more: a section that began before may have unmasked it.
            events.abi.mask_port(nr);
            self.step = Step::Quiet;
            self.grace = Grace::begin();
        }
        if matches!(self.step, Step::Quiet) {
            // One that began since, and found it unmasked, is running the handler: the new CPU must not run it too.
            if !self.passed() {
                return Ok(false);
            }
            self.step = Step::Unlink;
        }
        if matches!(self.step, Step::Unlink) {
            if events.abi.is_linked_racy(nr) {
                return Ok(false);
            }
            if !events.is_ready(self.to) {
                // It has gone down since.
                self.end_here();
                self.step = Step::Failed(DeviceError::CpuNotReady { nr, cpu: self.to });
                return self.is_over();
            }
            if let Err(errno) = events.xen.bind_vcpu(nr, self.to) {
                self.end_here();
                self.step = Step::Failed(DeviceError::Route { nr, cpu: self.to, errno });
                return self.is_over();
            }
            // It stays one of the old CPU's to look at.
            self.binding.cpu = self.to;
            self.binding.was_moved = true;
            self.binding.action.set_cpu(self.to);
            self.binding.action.forget_turn();
            events.cpus.on(self.to).own.add(nr);
            self.end_here();
            self.step = Step::Drain;
            self.grace = Grace::begin();
        }
        if matches!(self.step, Step::Drain) {
            if !self.passed() {
                return Ok(false);
            }
            self.step = Step::Over;
        }
        Ok(true)
    }

    fn passed(&mut self) -> bool {
        self.grace.is_over(&self.events.cpus, |cpu| &cpu.passage)
    }

    /// Gives the masks back, unmasked: whatever was muted or waited is told to the CPU that has the port now. A late port whose owner has
    /// an event to end is the owner's to unmask.
    fn end_here(&mut self) {
        let nr = self.binding.port.nr;
        self.binding.action.set_muted(false);
        self.events.devices.set_moving(nr, false);
        if !self.binding.action.is_unended() {
            self.events.unmask_by_xen(nr);
        }
        self.step = Step::Over;
    }
}

impl<H: Hypervisor> Drop for Moving<'_, H> {
    fn drop(&mut self) {
        let same_life = self.binding.port.incarnation == self.events.incarnation();
        if same_life && matches!(self.step, Step::Settle | Step::Quiet | Step::Unlink) {
            self.end_here();
        }
    }
}

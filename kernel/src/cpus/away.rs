//! vcpus that are away over a suspend: taken down before it, while they wait in the rendezvous, and brought back after it.
//!
//! | when | each other vcpu | hypercalls of vcpu 0 |
//! |---|---|---|
//! | before the hypercall | `VCPUOP_down`, wherever it is in its wait | 1 for each [`CALLS`] |
//! | the same domain goes on, or there was no suspend | `VCPUOP_up`: it goes on where it was | 1 for each [`CALLS`] |
//! | in a new domain, before the release | its `vcpu_info` placed, `VCPUOP_initialise` | 1 |
//! | after it | `VCPUOP_up`: it begins where it parked ([`reentry`]) | 1 for each [`CALLS`] |
//!
//! A vcpu that is down has no context that the toolstack would read, send and set: one to three milliseconds for each that the domain does not
//! stand still (`docs/decisions/0010-down-over-a-suspend.md`). And a restore starts vcpu 0 alone, so that nobody runs in a new domain on an old clock,
//! with a port that is another's by now, or without a `vcpu_info`, before vcpu 0 has made it fit to live in.
//!
//! `VCPUOP_down` of another vcpu stops it anywhere. That is right here and nowhere else: one that waits in a rendezvous holds
//! nothing (RV3 of `smp::Rendezvous`). It need not have stopped when the call returns; the suspend stops all.
//!
//! What is lost in a new domain is the vcpu's registers: the general ones stand on its stack, those that Xen keeps are the same for every vcpu's
//! whole life, user mode is entered anew, and vector registers a vcpu saves that has used them (`crate::vector`).
//!
//! Suspend: this is a part of it. One that was down before is not touched. Turned down: all calls for a vcpu in one multicall, after the release: those
//! that run already take vcpu 0's processor from it, and the last ones wait for all others' turns. A tree, in which those that are started start others: Xen does
//! all of these calls but `VCPUOP_down` under the domain's lock.

use alloc::boxed::Box;
use core::cell::RefCell;

use percpu::{CpuId, Local, Masked, PerCpu, Quiesced};
use smp::bring_up::VcpuInfoPlace;
use xen_sys::abi::arch::{VcpuGuestContext, xen_pfn_to_cr3};
use xen_sys::hypercall::Batch;
use xen_sys::primitive::sync::atomic::{AtomicU64, Ordering};

use super::bind::{CALLS, ROOM, vcpu_info_place};
use super::{get, hotplug, is_up, nr};
use crate::each::{Refused, for_each};
use crate::{memory, reentry};

/// Of all vcpus.
pub(super) struct Away {
    /// Where each CPU's stack was when it parked. Written by its CPU.
    stacks: PerCpu<AtomicU64>,
    /// What a vcpu starts with, all but what each has for itself. Made at boot, as nothing is allocated on the way back; vCPU 0's.
    context: Local<RefCell<Box<VcpuGuestContext>>>,
}

impl Away {
    /// For the first `nr` CPUs.
    pub(super) fn new(nr: usize) -> Away {
        let context = hotplug::context_at(reentry::entry(), 0, 0);
        Away {
            stacks: PerCpu::new(nr, |_| AtomicU64::new(0)),
            context: Local::new(1, |_| RefCell::new(context.clone())),
        }
    }

    /// Does `wait`, in which this CPU may be taken away; then it does it again in a new domain.
    ///
    /// # Safety
    /// As for [`reentry::call`].
    pub(super) unsafe fn while_waiting<T>(&self, wait: impl Fn() -> T) -> T {
        // SAFETY: the caller's.
        unsafe { reentry::call(self.stacks.mine(), wait) }
    }

    /// Has vCPU 0 fill in what `cpu` starts with.
    fn fill(&self, context: &mut VcpuGuestContext, cpu: CpuId, place: &hotplug::Place) {
        // ORDERING: Relaxed, passed on by its acknowledgement in the rendezvous.
        context.user_regs.rsp = self.stacks.on(cpu).load(Ordering::Relaxed);
        context.kernel_sp = place.stack_top;
        context.gs_base_kernel = place.gs_base;
    }
}

/// Those that take part in a suspend and do not lead it.
fn others() -> impl Iterator<Item = CpuId> {
    CpuId::first(nr()).skip(1).filter(|cpu| is_up(*cpu))
}

/// [`Prepare::TakeOthersDown`](smp::order::Prepare::TakeOthersDown). Context: vCPU 0, quiesced.
///
/// # Errors
/// Xen's; all are up then.
pub(crate) fn take_others_down(_others: &Quiesced) -> Result<(), Refused> {
    for_each::<CALLS>(others(), "VCPUOP_down", Batch::down, Batch::issue)
        .or_else(|error| bring_others_up().and(Err(error)))
}

/// Has those run that are down: in the same life of the domain where they were, in a new one as they have been initialised. Context: vCPU 0.
///
/// # Errors
/// Xen's.
pub(crate) fn bring_others_up() -> Result<(), Refused> {
    for_each::<CALLS>(others(), "VCPUOP_up", Batch::up, Batch::issue)
}

/// [`TakeOver::InitialiseOthers`](smp::order::TakeOver::InitialiseOthers). Context: vCPU 0, quiesced.
///
/// # Errors
/// The first call that Xen refused.
pub(crate) fn initialise_others(_others: &Quiesced, masked: &Masked) -> Result<(), Refused> {
    let away = &get().away;
    let mut context = away.context.mine(masked).borrow_mut();
    context.ctrlreg[3] = xen_pfn_to_cr3(memory::root_mfn().get());
    for cpu in others() {
        let place = hotplug::place_made_for(cpu);
        away.fill(&mut context, cpu, place);
        initialise(cpu, place, &context)?;
    }
    Ok(())
}

fn initialise(cpu: CpuId, place: &hotplug::Place, context: &VcpuGuestContext) -> Result<(), Refused> {
    let VcpuInfoPlace { mfn, offset } = vcpu_info_place(place.area);
    let vcpu = cpu.vcpu();
    let mut batch = Batch::<CALLS>::new();
    let calls = [
        // SAFETY: the area is reached through shared references only and is never freed (AR1).
        ("VCPUOP_register_vcpu_info", unsafe { batch.register_vcpu_info(vcpu, mfn, offset) }),
        // SAFETY: the context stands still until the end of this function, and is read once. Entries and root are the kernel's own; stack and area are
        //   this vcpu's, which does not run. It has not returned from where its stack was (RE1), as nobody has released it.
        ("VCPUOP_initialise", unsafe { batch.initialise(vcpu, context) }),
    ]
    .map(|(what, call)| (what, call.expect(ROOM)));
    let refused = |what, cpu| move |errno| Refused { what, cpu, errno };
    let results = batch.issue().map_err(refused("VCPUOP_initialise", None))?;
    for (what, call) in calls {
        results.get(call).map_err(refused(what, Some(cpu)))?;
    }
    Ok(())
}

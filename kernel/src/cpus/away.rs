//! vcpus that are away over a suspend: up for [`smp::Hotplug`], and down for Xen. vcpu 0 takes them down before it, while they wait in the
//! rendezvous, and brings them back after it.
//!
//! | when | each other vcpu | hypercalls of vcpu 0 |
//! |---|---|---|
//! | before the hypercall | `VCPUOP_down`, wherever it is in its wait | 1 for each [`CALLS`] |
//! | the same domain goes on, or there was no suspend | `VCPUOP_up`: it goes on where it was | 1 for each [`CALLS`] |
//! | in a new domain, before the release | its `vcpu_info` placed, `VCPUOP_initialise`, then up and down | 1 |
//! | after it | `VCPUOP_up`: it begins its wait again ([`reentry`]) | 1 for each [`CALLS`] |
//!
//! A vcpu that is down has no context that the toolstack would read, send and set, which saves one to three milliseconds of standing still
//! for each (`docs/decisions/0010-down-over-a-suspend.md`). And a restore starts vcpu 0 alone, so that nobody runs in a new domain on an old
//! clock, with a port that is another's by now, or without a `vcpu_info`, before vcpu 0 has made it fit to live in.
//!
//! `VCPUOP_down` of another vcpu stops it anywhere. That is right here and nowhere else: one that waits in a rendezvous holds
//! nothing (RV3 of `smp::Rendezvous`). It need not have stopped when the call returns; the suspend stops all. In a new domain one may still be
//! on its way down when it is released, and go on for as long as Xen needs to stop it, at the latest to its next hypercall, the one by which it
//! binds its ports; it takes no lock before that, and vcpu 0 none between the release and bringing it up.
//!
//! The up and down before the release is for the credit scheduler, which boosts whoever wakes but for the first time; that passes for a
//! migration (xen/common/sched/credit.c, `csched_unit_wake`). Who is not boosted waits behind dom0, which is busy then, for slices of 30 ms.
//! A vcpu that gets to run in between begins its wait again, as it may at any time.
//!
//! What is lost in a new domain is the vcpu's registers. The general ones stand on its stack; user mode is entered anew; vector registers a
//! vcpu saves that has used them (`crate::vector`); the rest is in the context, filled in anew.
//!
//! Suspend: this is a part of it. One that was down before is not touched. Turned down: all calls for a vcpu in one multicall, after the
//! release: those that run already take vcpu 0's processor from it, and the last ones wait for all others' turns. A tree, in which those that
//! are started start others: Xen does all of these calls but `VCPUOP_down` under the domain's lock.

use alloc::boxed::Box;
use core::cell::RefCell;

use percpu::{CpuId, Local, Masked, PerCpu, Quiesced};
use smp::bring_up::VcpuInfoPlace;
use xen_sys::abi::arch::{VcpuGuestContext, xen_pfn_to_cr3};
use xen_sys::hypercall::Batch;
use xen_sys::primitive::sync::atomic::{AtomicU64, Ordering};

use super::bind::{CALLS, ROOM, vcpu_info_place};
use super::{get, hotplug, up_others};
use crate::each::{Refused, call_for_each};
use crate::{memory, reentry};

/// What it takes to bring them back.
pub(super) struct Away {
    /// Where each CPU's stack was when it parked. Written by its CPU. Suspend: *kept*.
    stacks: PerCpu<AtomicU64>,
    /// What a vcpu starts with, all but what each has for itself. Made at boot, as nothing is allocated on the way back; vcpu 0's. Suspend: the
    /// root's mfn is *rebuilt*.
    context: Local<RefCell<Box<VcpuGuestContext>>>,
}

impl Away {
    /// For the first `nr` CPUs.
    pub(super) fn new(nr: usize) -> Away {
        Away {
            stacks: PerCpu::new(nr, |_| AtomicU64::new(0)),
            context: Local::new(1, |_| RefCell::new(hotplug::context_at(reentry::entry(), 0, 0))),
        }
    }

    /// Does `wait`, in which this CPU may be taken down; in a new domain it does it again.
    ///
    /// # Safety
    /// As for [`reentry::call`].
    pub(super) unsafe fn restartable<T>(&self, wait: impl Fn() -> T) -> T {
        // SAFETY: the caller has promised what `reentry::call` asks for.
        unsafe { reentry::call(self.stacks.mine(), wait) }
    }

    /// Fills in what `cpu` has for itself.
    fn fill(&self, context: &mut VcpuGuestContext, cpu: CpuId, place: &hotplug::Place) {
        // ORDERING: Relaxed: it was written before the acknowledgement that vcpu 0 has acquired in `Rendezvous::run`.
        context.user_regs.rsp = self.stacks.on(cpu).load(Ordering::Relaxed);
        context.kernel_sp = place.stack_top;
        context.gs_base_kernel = place.gs_base;
    }
}

/// [`Prepare::TakeOthersDown`](smp::order::Prepare::TakeOthersDown). Context: vcpu 0, quiesced.
///
/// # Errors
/// Xen's; all are up then.
///
/// # Panics
/// If they cannot be brought up again: nobody would ever come back.
pub(crate) fn take_others_down(_others: &Quiesced) -> Result<(), Refused> {
    call_for_each::<CALLS>(up_others(), "VCPUOP_down", Batch::down, Batch::issue).inspect_err(|error| {
        if let Err(worse) = bring_others_up() {
            panic!("{error}, and then {worse}");
        }
    })
}

/// Has those run that are down: where they were, or from the start of their wait where they have been initialised. Context: vcpu 0.
///
/// # Errors
/// Xen's.
pub(crate) fn bring_others_up() -> Result<(), Refused> {
    call_for_each::<CALLS>(up_others(), "VCPUOP_up", Batch::up, Batch::issue)
}

/// [`TakeOver::InitialiseOthers`](smp::order::TakeOver::InitialiseOthers). Context: vcpu 0, quiesced.
///
/// # Errors
/// The first call that Xen refused.
pub(crate) fn initialise_others(others: &Quiesced, masked: &Masked) -> Result<(), Refused> {
    let away = &get().away;
    let mut context = away.context.mine(masked).borrow_mut();
    context.ctrlreg[3] = xen_pfn_to_cr3(memory::root_mfn().get());
    for cpu in up_others() {
        let place = hotplug::place_made_for(cpu);
        away.fill(&mut context, cpu, place);
        initialise(others, cpu, place, &context)?;
    }
    Ok(())
}

fn initialise(
    _others: &Quiesced,
    cpu: CpuId,
    place: &hotplug::Place,
    context: &VcpuGuestContext,
) -> Result<(), Refused> {
    let VcpuInfoPlace { mfn, offset } = vcpu_info_place(place.area);
    let vcpu = cpu.vcpu();
    let mut batch = Batch::<CALLS>::new();
    let calls = [
        // SAFETY: the area is reached through shared references only and is never freed (AR1).
        ("VCPUOP_register_vcpu_info", unsafe { batch.register_vcpu_info(vcpu, mfn, offset) }),
        // SAFETY: the context stands still until the end of this function. Entry and root are the kernel's own. Stack and area
        //   are this vcpu's, which has not run in this life of the domain, and nobody else's. Its stack is where a call was that has not
        //   returned (RE1), as nobody has released it.
        ("VCPUOP_initialise", unsafe { batch.initialise(vcpu, context) }),
        ("VCPUOP_up", batch.up(vcpu)),
        ("VCPUOP_down", batch.down(vcpu)),
    ]
    .map(|(what, call)| (what, call.expect(ROOM)));
    let refused = |what, cpu| move |errno| Refused { what, cpu, errno };
    let results = batch.issue().map_err(refused("VCPUOP_initialise", None))?;
    for (what, call) in calls {
        results.get(call).map_err(refused(what, Some(cpu)))?;
    }
    Ok(())
}

//! How the vcpus are started: vcpu 0 by itself, the others by vcpu 0, each of which then binds its own ports.

use alloc::boxed::Box;
use core::fmt;

use evtchn::Ports;
use percpu::{Area, CpuId, PerCpu, Quiesced};
use smp::{Mail, Patience, Rendezvous};
use xen_sys::Errno;
use xen_sys::abi::arch::{
    FLAT_KERNEL_CS, FLAT_KERNEL_SS, VGCF_failsafe_disables_events, VGCF_in_kernel, VcpuGuestContext, xen_pfn_to_cr3,
};
use xen_sys::hypercall::vcpu;
use xen_sys::primitive::sync::atomic::AtomicU8;

use super::bind::{Placed, all_alive, bind_this_cpu, prove_life, vcpu_info_place};
use super::roll_call::RollCall;
use super::{AtomicState, CPUS, Cpus, Deliver, State, get};
use crate::{events, executor, memory, time, traps};

/// How often a waiter looks before it gives its processor back.
const PATIENCE: Patience = Patience::SHORT;

/// The domain has more vcpus than this kernel can run.
#[derive(Debug)]
pub(crate) struct TooManyVcpus;

impl fmt::Display for TooManyVcpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let max = CpuId::MAX;
        write!(
            f,
            "this domain has more than {max} vcpus, and this kernel runs at most {max}: lower vcpus= and maxvcpus="
        )
    }
}

/// How many vcpus the domain has: Xen is asked for each until it knows no more. Costs a hypercall each.
///
/// # Errors
/// More than this kernel can run.
pub(crate) fn count() -> Result<usize, TooManyVcpus> {
    let exists = |nr: usize| u32::try_from(nr).is_ok_and(|nr| vcpu::is_up(nr) != Err(Errno::ENOENT));
    match (0..=CpuId::MAX).find(|nr| !exists(*nr)) {
        Some(nr) => Ok(nr),
        None => Err(TooManyVcpus),
    }
}

/// Maps `shared_info`, starts the clock, binds what vcpu 0 wants, and unmasks upcalls for the first time.
///
/// # Panics
/// If Xen refuses any of it: there is no way to run without.
pub(crate) fn start_boot_cpu(nr: usize, shared_info_maddr: u64, entered_tsc: u64) {
    CPUS.call_once(|| Cpus {
        nr,
        mail: Mail::new(nr, Deliver),
        rendezvous: Rendezvous::new(nr, PATIENCE),
        roll_call: RollCall::new(nr),
        states: PerCpu::new(nr, |_| AtomicState(AtomicU8::new(State::Starting as u8))),
    });
    let masked = percpu::mask_upcalls();
    // SAFETY: no other vcpu has been started.
    let quiesced = unsafe { Quiesced::assume() };
    let page = memory::map_shared_info(shared_info_maddr).unwrap_or_else(|error| panic!("shared_info: {error}"));
    // SAFETY: mapped just now, until the suspend path detaches it; parked CPUs do not enter the demultiplexer.
    unsafe { events::get().attach(&quiesced, page, Ports::Gone) };
    // SAFETY: mapped, and made of atomics.
    let shared = unsafe { page.as_ref() };
    memory::publish_p2m(&shared.arch).unwrap_or_else(|error| panic!("p2m: {error}"));
    bind_this_cpu(&masked, Placed::No).unwrap_or_else(|error| panic!("vcpu 0: {error}"));
    time::start(&quiesced, entered_tsc, shared);
    prove_life(&masked);
}

/// Starts all other vcpus, one after the other; each finds its own feet at the same time as the rest.
///
/// # Panics
/// If there is no memory for one, or Xen refuses.
pub(crate) fn start_others() {
    for cpu in CpuId::first(super::nr()).skip(1) {
        if let Err(why) = start(cpu) {
            panic!("vcpu {cpu} cannot be started: {why}");
        }
    }
}

fn start(cpu: CpuId) -> Result<(), alloc::string::String> {
    let fail = |what: &'static str| move |error: Errno| alloc::format!("{what}: {error}");
    let stack_top = memory::map_stack(cpu).map_err(|error| alloc::format!("stack: {error}"))?;
    let area: &'static Area = Box::leak(Box::new(Area::new(cpu)));
    let gs_base = area.link();
    let (mfn, offset) = vcpu_info_place(area);
    // SAFETY: the area is never freed, and reached through shared references only (AR1). The vcpu is down.
    unsafe { vcpu::register_vcpu_info(cpu.vcpu(), mfn, offset) }.map_err(fail("register_vcpu_info"))?;
    let context = context(cpu, stack_top, gs_base);
    // SAFETY: entry, stack, root, callbacks and gs base are valid and this vcpu's own.
    unsafe { vcpu::initialise(cpu.vcpu(), &context) }.map_err(fail("initialise"))?;
    get().rendezvous.admit(cpu);
    vcpu::up(cpu.vcpu()).map_err(fail("up"))
}

/// What `cpu` starts with. On the heap: it is 5 KiB.
fn context(cpu: CpuId, stack_top: u64, gs_base: u64) -> Box<VcpuGuestContext> {
    let mut context = Box::new(VcpuGuestContext::zeroed());
    context.flags = VGCF_in_kernel | VGCF_failsafe_disables_events;
    context.user_regs.rip = boot::secondary_entry();
    context.user_regs.rsp = stack_top;
    context.user_regs.rdi = u64::from(cpu.vcpu());
    context.user_regs.cs = FLAT_KERNEL_CS;
    context.user_regs.ss = FLAT_KERNEL_SS;
    for trap in traps::table().iter().filter(|trap| trap.address != 0) {
        context.trap_ctxt[usize::from(trap.vector)] = *trap;
    }
    context.ctrlreg[3] = xen_pfn_to_cr3(memory::root_mfn());
    context.event_callback_eip = traps::upcall_entry();
    context.failsafe_callback_eip = traps::failsafe_entry();
    context.gs_base_kernel = gs_base;
    context
}

/// Where `boot`'s entry code arrives on every other vcpu: on its own stack, upcalls masked, gs base set.
///
/// # Safety
/// Called by the entry code only.
#[unsafe(no_mangle)]
unsafe extern "C" fn stasis_secondary_main(_argument: u64) -> ! {
    let masked = percpu::mask_upcalls();
    if let Err(error) = bind_this_cpu(&masked, Placed::Yes) {
        panic!("vcpu {}: {error}", percpu::current());
    }
    prove_life(&masked);
    drop(masked);
    executor::run()
}

/// Waits until every vcpu has taken a timer event and an IPI, and says so.
pub(crate) async fn online() {
    let (_, ns) = all_alive().await;
    // Guest time began with the first instruction.
    crate::say!("online", vcpus = super::nr(), ns = ns);
}

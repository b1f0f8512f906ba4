//! How the vcpus are started at boot: vcpu 0 by itself, the others by vcpu 0, each of which then binds its own ports.

use core::fmt;

use evtchn::Ports;
use percpu::{CpuId, CpuSet, PerCpu, Quiesced};
use smp::{Hotplug, Mail, Outcome, Patience, Rendezvous, RollCall};
use xen_sys::Errno;
use xen_sys::hypercall::vcpu;
use xen_sys::primitive::sync::atomic::AtomicU8;

use super::away::Away;
use super::bind::{all_alive, first_life, place_vcpu_info, restore_this_cpu};
use super::laggards::{LastSeen, show_area};
use super::{AtomicState, CPUS, Cpus, Deliver, State, get, note};
use crate::given::Given;
use crate::{events, executor, memory, time, vector};

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

/// Maps `shared_info`, starts the clock, and binds what vcpu 0 wants. Upcalls stay masked until its executor runs.
///
/// # Panics
/// If Xen refuses any of it: there is no way to run without.
pub(crate) fn start_boot_cpu(nr: usize, resume: boot::Resume, shared_info_maddr: u64, entered_tsc: u64) {
    CPUS.call_once(|| Cpus {
        nr,
        mail: Mail::of_cpus_down(nr, Deliver),
        rendezvous: Rendezvous::new(nr, PATIENCE),
        hotplug: Hotplug::new(nr),
        given: Given::new(nr, resume),
        roll_call: RollCall::new(nr),
        states: PerCpu::new(nr, |_| AtomicState(AtomicU8::new(State::Starting as u8))),
        last_seen: PerCpu::new(nr, |_| LastSeen::new()),
        away: Away::new(nr),
    });
    let masked = percpu::mask_upcalls();
    // SAFETY: no other vcpu has been started.
    let quiesced = unsafe { Quiesced::assume() };
    let page = memory::map_shared_info(shared_info_maddr).unwrap_or_else(|error| panic!("shared_info: {error}"));
    // SAFETY: mapped just now, until the suspend path detaches it; parked CPUs do not enter the demultiplexer.
    if let Err(error) = unsafe { events::get().attach(&quiesced, page, Ports::Gone) } {
        panic!("evtchn={}: {error}; this Xen may know the other ABI only", events::get().abi());
    }
    // SAFETY: mapped, and made of atomics.
    let shared = unsafe { page.as_ref() };
    memory::publish_p2m(&shared.arch).unwrap_or_else(|error| panic!("p2m: {error}"));
    place_vcpu_info(&masked).unwrap_or_else(|error| panic!("vcpu 0: {error}"));
    time::start(&quiesced, entered_tsc, shared);
    first_life(&masked);
}

/// Starts those of `wanted` that are others than vcpu 0, one after the other; each finds its own feet at the same time as the
/// rest. Context: a task on vcpu 0, once.
///
/// # Panics
/// If there is no memory for one, or Xen refuses.
pub(crate) fn start_others(wanted: &CpuSet) {
    {
        let masked = percpu::mask_upcalls();
        // SAFETY: no other vcpu has been started.
        let quiesced = unsafe { Quiesced::assume() };
        get().roll_call.begin(&quiesced, |cpu| cpu == CpuId::BOOT || wanted.contains(cpu));
        // vcpu 0 is of this round, as it is of one after a checkpoint.
        restore_this_cpu(&masked, Outcome::Continued);
    }
    for cpu in wanted.iter().filter(|cpu| *cpu != CpuId::BOOT) {
        if let Err(error) = super::hotplug::start(cpu) {
            panic!("vcpu {cpu}: {error}");
        }
    }
}

/// Where `boot`'s entry code arrives on every other vcpu: on its own stack, upcalls masked, gs base set.
///
/// # Safety
/// Called by the entry code only.
#[unsafe(no_mangle)]
unsafe extern "C" fn stasis_secondary_main(_argument: u64) -> ! {
    let masked = percpu::mask_upcalls();
    // In a later life of the domain it said last that it was down.
    note(State::Starting);
    vector::forget_use();
    show_area();
    first_life(&masked);
    drop(masked);
    executor::run()
}

/// Waits until every vcpu that was started has taken a timer event and an IPI, and says so.
pub(crate) async fn online() {
    let (_, ns) = all_alive().await;
    // Guest time began with the first instruction.
    crate::say!("online", vcpus = super::nr_up(), ns = ns);
}

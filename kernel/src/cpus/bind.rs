//! What a vcpu does for itself, at bring-up and again after every restore, in two hypercalls: one that registers
//! its runstate area, stops the 100 Hz tick, and binds its virqs and its IPI; and one that fires its timer and sends the
//! roll call's IPI. What has come when it is back is taken while upcalls are still masked ([`take_what_came`]), so that
//! unmasking them costs none. So another vcpu makes two before it runs its first task, with either ABI; with FIFO, the first
//! to have a port beyond the event pages makes one more for each 1024 ports. After `Continued` it makes the second alone.
//!
//! | call of the first | at boot | after a restore | restores |
//! |---|---|---|---|
//! | register the runstate area | every vcpu | the same | statistics |
//! | stop the periodic timer | every vcpu | the same, unless vcpu 0 has (`given`) | quiet |
//! | place the control block, with the FIFO ABI | every vcpu but 0, for which it switches the domain | the same | its queues |
//! | bind virqs and IPI | every vcpu | the same, unless vcpu 0 has | its ports |
//!
//! | call of the second | when | for |
//! |---|---|---|
//! | fire the timer | always | proof that it works; the executor then arms what it wants. With FIFO an event that comes before its port is unmasked costs a hypercall, so this comes after |
//! | priority of the IPI, with the FIFO ABI | in a new domain | IPIs come first; the port must be known |
//! | send to the one before in line | always, but for the first | the roll call |
//!
//! A `vcpu_info` has been placed before all this: vcpu 0's by itself ([`place_vcpu_info`]), anybody else's by vcpu 0, while it was down. Xen fills
//! its clock when it next schedules the vcpu, so for the first time; or when the secondary time area is set, which vcpu 0 does, to none.
//!
//! Turned down: a secondary time area (it repeats what
//! `vcpu_info` holds); waiting for a refreshed clock (up to a second).

use core::fmt;
use core::ptr;

use evtchn::{BindError, Ipi};
use percpu::{Area, CpuId, Masked, Quiesced};
use smp::bring_up::VcpuInfoPlace;
use smp::order::EachCpu;
use smp::suspend::{CpuSteps, restore_cpu};
use smp::trace::Mark;
use smp::{Kind, Outcome, Progress};
use xen_sys::Errno;
use xen_sys::hypercall::{Batch, CallToken, Results};

use super::gate::Gate;
use super::{get, mail, nr, up_others};
use crate::given::{NotGiven, Own};
use crate::{events, memory, time, timer, trace, wait};

/// Runstate, tick, control block, two virqs and an IPI take six. A vcpu's own batches in a resume, the gate's, and those for many vcpus all
/// have room for so many, so that their code is there once, and cold once (`docs/decisions/0008-cold-code.md`).
pub(super) const CALLS: usize = 8;

pub(super) const ROOM: &str = "the batch has room for all";

/// A deadline that is past: 1 ns after the host booted. 0 would mean "no timer".
const AT_ONCE: u64 = 1;

/// Ports of each vcpu: a virq and an IPI.
const PORTS_PER_CPU: usize = 2;
/// VIRQ_DEBUG, console, xenstore, the gate of the rendezvous, the suspend event channel.
const PORTS_BESIDES: usize = 5;

/// How long the roll call may take before the missing are named.
const PATIENCE_NS: u64 = 5_000_000_000;

/// What a vcpu could not do for itself.
#[derive(Debug)]
pub(crate) enum CpuError {
    /// The batch as a whole, or one of its calls.
    Call { what: &'static str, errno: Errno },
    /// What it was to do for others.
    ForOthers(NotGiven),
    /// Its ports.
    Bind(BindError),
}

impl fmt::Display for CpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CpuError::Call { what, errno } => write!(f, "{what}: {errno}"),
            CpuError::ForOthers(NotGiven::Port(error)) | CpuError::Bind(error) => {
                error.fmt(f)?;
                match error {
                    BindError::Refused { errno: Errno::ENOSPC, .. } => {
                        let needed = PORTS_PER_CPU * nr() + PORTS_BESIDES;
                        write!(
                            f,
                            ": the domain has no more ports; say max_event_channels={needed} or more in the guest's config (xl allows \
                             1023 where it says nothing)"
                        )
                    }
                    _ => Ok(()),
                }
            }
            CpuError::ForOthers(error) => error.fmt(f),
        }
    }
}

/// Does all of the first table above for this CPU. Costs one hypercall. Context: upcalls masked; takes no lock, allocates nothing.
///
/// # Errors
/// The first call that Xen refused; the others have been done.
fn bind_this_cpu(masked: &Masked) -> Result<(), CpuError> {
    let area = percpu::area();
    let vcpu = percpu::current().vcpu();
    let mut own = Own::<CALLS>::new(get().given.as_ref());
    let runstate = (&raw const area.runstate).cast_mut();
    // SAFETY: the area is in the image or the direct map, which every root has, and never freed (AR1).
    let runstate = unsafe { own.batch.register_runstate(vcpu, runstate) }.expect(ROOM);
    let tick = (!own.is_given()).then(|| own.batch.stop_periodic_timer(vcpu).expect(ROOM));
    let plan = events::get().plan(masked, &mut own).map_err(CpuError::Bind)?;

    let results = own.batch.issue().map_err(|errno| CpuError::Call { what: "multicall", errno })?;
    check(&results, [("register_runstate_memory_area", Some(runstate)), ("stop_periodic_timer", tick)])?;
    events::get().record(masked, &area.vcpu_info, plan, &results).map_err(CpuError::Bind)
}

/// Does all of the second table above. Costs one hypercall. Context: as before, when the inbox has been served.
///
/// # Errors
/// As before, but for the send, which is counted.
fn join_roll_call(masked: &Masked, outcome: Outcome) -> Result<(), CpuError> {
    let mut batch = Batch::<CALLS>::new();
    timer::forget_armed(masked);
    let fire = batch.set_timer(AT_ONCE).expect(ROOM);
    let priority = match outcome {
        Outcome::Resumed => events::get().plan_priority(masked, &mut batch).map_err(CpuError::Bind)?,
        Outcome::Continued | Outcome::Cancelled => None,
    };
    let mut ask = None;
    get().roll_call.restored(percpu::current(), |cpu| {
        if mail().post_unrung(cpu, Kind::Alive) {
            ask = events::get().plan_ipi(cpu, Ipi::Call, &mut batch);
        }
    });
    let results = batch.issue().map_err(|errno| CpuError::Call { what: "multicall", errno })?;
    check(&results, [("set_timer_op", Some(fire)), ("set_priority", priority)])?;
    if let Some(ask) = ask {
        let _ = events::get().sent(results.get(ask).map(drop));
    }
    Ok(())
}

/// Binds for all others that are up, where that is vcpu 0's affair ([`crate::given`]). Context: vcpu 0, in a new life of the domain.
///
/// # Errors
/// The first call that Xen refused.
pub(crate) fn bind_for_others(others: &Quiesced) -> Result<(), CpuError> {
    let Some(given) = &get().given else { return Ok(()) };
    given.ask_xen(others, up_others(), |cpu| events::get().intents(cpu)).map_err(CpuError::ForOthers)
}

/// Takes the events that have come for this CPU, as an upcall would that struck now. Context: masked, in a task or parked.
pub(crate) fn take_what_came(masked: &Masked) {
    smp::Gate::take_events(&Gate, masked);
}

/// Places this CPU's `vcpu_info` and fills its clock record: all that vcpu 0 needs to tell the time after a restore. One hypercall.
///
/// # Errors
/// Xen's.
pub(crate) fn place_vcpu_info(_masked: &Masked) -> Result<(), CpuError> {
    let mut batch = Batch::<CALLS>::new();
    let vcpu = percpu::current().vcpu();
    let VcpuInfoPlace { mfn, offset } = vcpu_info_place(percpu::area());
    // SAFETY: the area is reached through shared references only and is never freed (AR1).
    let info = unsafe { batch.register_vcpu_info(vcpu, mfn, offset) }.expect(ROOM);
    // SAFETY: there is no area.
    let clock = unsafe { batch.register_time(vcpu, ptr::null_mut()) }.expect(ROOM);
    let results = batch.issue().map_err(|errno| CpuError::Call { what: "multicall", errno })?;
    check(&results, [("register_vcpu_info", Some(info)), ("register_vcpu_time_memory_area", Some(clock))])
}

fn check<const N: usize, const M: usize>(
    results: &Results<'_, N>,
    calls: [(&'static str, Option<CallToken>); M],
) -> Result<(), CpuError> {
    for (what, token) in calls {
        if let Some(token) = token {
            results.get(token).map_err(|errno| CpuError::Call { what, errno })?;
        }
    }
    Ok(())
}

/// Where an area's `vcpu_info` is for Xen, now: machine frame and offset.
pub(super) fn vcpu_info_place(area: &Area) -> VcpuInfoPlace {
    let (mfn, offset) = memory::frame_and_offset(&raw const area.vcpu_info);
    VcpuInfoPlace { mfn: mfn.get(), offset }
}

/// What a CPU does by itself when it comes to life, in a new or in the same domain, in the order that [`smp::suspend`] keeps.
/// Context: upcalls masked, a parked CPU before its outcome is dropped.
///
/// # Panics
/// If Xen refuses: this vcpu can neither run nor say so in any better way.
pub(crate) fn restore_this_cpu(masked: &Masked, outcome: Outcome) {
    if let Err(failed) = restore_cpu(&ThisCpu { outcome }, outcome, masked) {
        panic!("vcpu {}: {failed}", percpu::current());
    }
}

/// The first life of a CPU is as a new one. Its `vcpu_info` was placed before.
pub(super) fn first_life(masked: &Masked) {
    trace::apart(masked);
    restore_this_cpu(masked, Outcome::Resumed);
}

struct ThisCpu {
    outcome: Outcome,
}

impl CpuSteps for ThisCpu {
    type Error = CpuError;

    fn each_cpu(&self, step: EachCpu, masked: &Masked) -> Result<(), CpuError> {
        match step {
            EachCpu::Bind => bind_this_cpu(masked)?,
            EachCpu::ServeInbox => mail().serve(masked),
            EachCpu::JoinRollCall => join_roll_call(masked, self.outcome)?,
        }
        trace::mark(masked, Mark::restored(step));
        Ok(())
    }
}

/// Sends the IPI of who comes last, which nobody is left to send.
fn ask_to_answer(cpu: CpuId) {
    mail().post(cpu, Kind::Alive);
}

/// Set by the last vcpu to prove its life.
static COMPLETE: wait::Flag = wait::Flag::new();

fn note_progress(masked: &Masked, progress: Progress, first: Mark) {
    if progress == Progress::Going {
        return;
    }
    trace::mark(masked, first);
    if progress == Progress::Complete {
        COMPLETE.set();
    }
}

/// VIRQ_TIMER came. Context: upcall.
pub(super) fn took_timer(masked: &Masked) {
    note_progress(masked, get().roll_call.took_timer(percpu::current(), time::now_ns), Mark::Timer);
}

/// An IPI of the roll call came. Context: upcall.
pub(super) fn took_ipi(masked: &Masked) {
    note_progress(masked, get().roll_call.took_ipi(percpu::current(), time::now_ns, ask_to_answer), Mark::Ipi);
}

/// Waits until every vcpu has taken a timer event and an IPI; says which was the last, and when. Names those that are missing, once
/// a while.
pub(crate) async fn all_alive() -> (CpuId, u64) {
    while !get().roll_call.is_complete() {
        if timer::within(PATIENCE_NS, COMPLETE.wait()).await.is_err() && !get().roll_call.is_complete() {
            crate::note!(Warn, "still waiting for a timer event or an IPI on vcpus {}", get().roll_call.missing_racy());
        }
    }
    get().roll_call.slowest()
}

//! Suspend and resume, from the request to the report: what each step of `smp::suspend` does in this kernel.
//!
//! A request is served by one task on vcpu 0: tasks are frozen, xenstore becomes quiet, all other vcpus park, the steps run, vcpu 0 restores
//! itself, tasks are thawed, every other vcpu restores itself, the ports that the toolstack gave us are bound ([`devices`]), xenstore goes
//! on.
//!
//! Between quiesce and release: no lock, no allocation (the heap is sealed until the steps are through), no line on the console.
//!
//! | hypercalls on vcpu 0, but for the suspend itself | before it | after `Resumed` | after `Continued` |
//! |---|---|---|---|
//! | freeze, before all others are stopped | 1 for each 32 in user mode (rings them) | | |
//! | rendezvous, while the others come or go | 1 for each 32 others (rings them), 1 or more (dozes), 1 at the first of all (makes the gate's port) | 1 (opens the gate) | 1 (opens the gate) |
//! | quiesced, while all wait | 1 (unmap `shared_info`), 1 for each 8 others (take them down) | 4 (map `shared_info`, place `vcpu_info`, ask for the machine's size, make the gate's port), 1 for each other (initialises it), and those of `resume=` (none in `parallel`) | 1 (map it), 1 for each 8 others (bring them up) |
//! | restoring itself, while all wait | | 2 (bind; timer and roll call) | 1 (timer and roll call) |
//! | released | | 1 for each 8 others (brings them up), 3 for each device port | |
//!
//! Every other vcpu makes those of the row *restoring itself*, in parallel, and no other before its first task. What
//! vcpu 0 does alone and for each of them is to take it down and to bring it back: what that costs, and what it saves, is in
//! `docs/decisions/0010-down-over-a-suspend.md`. After `Continued` two words of `start_info` are
//! put back, and vcpu 0's vector registers where they are in use (`vector`). A whole checkpoint, from the request to the figures in
//! `data/stasis`, writes to 28 pages with 4 vcpus, and a restore to 29 (`cargo xtask dirty-pages`).

use core::fmt;
use core::hint::black_box;

use evtchn::{AttachError, Ports};
use mm::MmError;
use percpu::{Masked, Quiesced};
use smp::order::{Prepare, TakeOver};
use smp::suspend::{Ended, Failed, Steps};
use smp::trace::Mark;
use smp::{Missing, Outcome};
use xen_sys::Errno;
use xen_sys::abi::xen::SharedInfo;
use xen_sys::hypercall::sched::{self, SuspendOutcome};
use xen_sys::primitive::sync::atomic::Ordering;
use xenbus::Store;

use crate::cpus::{self, CpuError, Laggards};
use crate::each::Refused;
use crate::freezer::Freezer;
use crate::logfmt::Line;
use crate::time::{Before, Scale};
use crate::workload::Over;
use crate::{console, control, devices, events, heap, memory, start_info, time, timer, trace, vector, workload};

/// How long xenstored may take to answer what is under way when a suspend is asked for.
const QUIET_LIMIT_NS: u64 = 20_000_000_000;

/// Why a suspend did not take place.
enum Abort {
    /// xenstored does not answer.
    StoreBusy,
    /// vcpus did not come to the rendezvous.
    Missing(Missing),
    /// Something could not be taken away for it.
    NotPrepared(Failed<Prepare, StepError>),
    /// Xen refused the hypercall.
    Refused(Errno),
}

/// What is known of a suspend right after it.
struct Report {
    outcome: Outcome,
    /// Guest time at the hypercall, and at the first instruction after it.
    suspended_ns: u64,
    back_ns: u64,
    /// The hypercall by the TSC, which on one host goes on whatever clocks do.
    held_ticks: u64,
}

/// Answers a request to suspend, which was seen at guest time `seen_ns` and has been acknowledged. Context: the control task,
/// on vcpu 0.
pub(crate) async fn serve(store: &'static Store, via: &str, seen_ns: u64, freezer: Freezer) {
    freezer.freeze();
    crate::say!("suspend-request", via = via);
    trace::begin(seen_ns);
    workload::before_suspend(freezer.were_in_user_mode());
    let report = match timer::within(QUIET_LIMIT_NS, store.quiesce()).await {
        Ok(Ok(quiet)) => {
            trace::mark_here(Mark::Quiet);
            let result = run(&freezer);
            let resumed = result.as_ref().is_ok_and(|report| report.outcome == Outcome::Resumed);
            quiet.resume(if resumed { SuspendOutcome::Resumed } else { SuspendOutcome::Continued });
            trace::mark_here(Mark::Thawed);
            result
        }
        // This task alone quiesces the store.
        Ok(Err(_)) | Err(timer::TimeIsUp) => Err(Abort::StoreBusy),
    };
    // Where they have not been thawed.
    drop(freezer);
    match report {
        Ok(report) => tell(seen_ns, &report).await,
        Err(abort) => tell_abort(&abort),
    }
    trace::end();
}

fn tell_abort(abort: &Abort) {
    match abort {
        Abort::StoreBusy => crate::say!("suspend-abort", reason = "xenstore-busy", missing = "none"),
        Abort::Missing(missing) => {
            crate::say!("suspend-abort", reason = "rendezvous", missing = missing.cpus, states = Laggards(missing));
        }
        Abort::NotPrepared(failed) => crate::say!("suspend-abort", reason = failed, missing = "none"),
        Abort::Refused(errno) => {
            crate::say!("suspend-abort", reason = format_args!("SCHEDOP_shutdown: {errno}"), missing = "none");
        }
    }
}

async fn tell(seen_ns: u64, report: &Report) {
    let (slowest, alive_ns) = cpus::all_alive().await;
    trace::mark_here(Mark::AllAlive);
    let incarnation = events::get().incarnation();
    let prepare_ns = report.suspended_ns.saturating_sub(seen_ns);
    let blackout_ns = report.back_ns.saturating_sub(report.suspended_ns);
    let resume_ns = alive_ns.saturating_sub(report.back_ns);
    let mut line = Line::new(if report.outcome == Outcome::Resumed { "resumed" } else { "continued" });
    let facts: [(&str, u64); 6] = [
        ("incarnation", incarnation.get().into()),
        ("vcpus", cpus::nr_up() as u64),
        ("prepare_ns", prepare_ns),
        ("blackout_ns", blackout_ns),
        ("resume_ns", resume_ns),
        ("slowest_vcpu", slowest.vcpu().into()),
    ];
    for (key, value) in facts {
        line.field(key, &value);
    }
    console::print(&line);
    workload::after_suspend(Over { outcome: report.outcome, prepare_ns, resume_ns, held_ticks: report.held_ticks });
    control::publish(&facts).await;
}

/// Parks all others, suspends, and brings vcpu 0 back.
#[expect(clippy::result_large_err, reason = "a set of 1024 CPUs, once a suspend")]
fn run(freezer: &Freezer) -> Result<Report, Abort> {
    console::dirty_ring();
    control::dirty_ring();
    // Kept until this vcpu is whole again: the guards inside nest in it.
    let masked = percpu::mask_upcalls();
    let mut sequence = Sequence::new();
    let ended = cpus::rendezvous_of_suspend(|others, masked| {
        heap::get().seal();
        let ended = smp::suspend::suspend(&mut sequence, others, masked);
        heap::get().unseal();
        let outcome = ended.outcome();
        if matches!(ended, Ended::Resumed | Ended::Continued) {
            // Before the release: after it the others take the processors, for a millisecond each.
            cpus::restore_this_cpu(masked, outcome);
        }
        freezer.thaw_parked(others);
        (outcome, ended)
    });
    let ended = ended.map_err(Abort::Missing)?;
    let outcome = ended.outcome();
    trace::came_back(&masked, outcome, sequence.after);
    match ended {
        Ended::Resumed | Ended::Continued => {}
        Ended::NotPrepared(failed) => return Err(Abort::NotPrepared(failed)),
        Ended::Refused(errno) => return Err(Abort::Refused(errno)),
    }
    if outcome == Outcome::Resumed {
        if let Err(error) = cpus::bring_others_up() {
            panic!("resume: {error}");
        }
        trace::mark(&masked, Mark::OthersUp);
    }
    // The roll call's, for which all wait. And again below, for what the devices' peers have sent by then.
    cpus::take_what_came(&masked);
    if outcome == Outcome::Resumed {
        devices::connect();
        trace::mark(&masked, Mark::Connected);
    }
    cpus::take_what_came(&masked);
    Ok(Report {
        outcome,
        suspended_ns: sequence.suspended_ns(),
        back_ns: sequence.back_ns(),
        held_ticks: sequence.back_tsc.saturating_sub(sequence.left_tsc),
    })
}

/// What a step of the sequence failed on.
#[derive(Debug)]
pub(crate) enum StepError {
    Memory(MmError),
    Cpu(CpuError),
    Events(AttachError),
    Others(Refused),
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StepError::Memory(error) => error.fmt(f),
            StepError::Cpu(error) => error.fmt(f),
            StepError::Events(error) => error.fmt(f),
            StepError::Others(error) => error.fmt(f),
        }
    }
}

/// The kernel's part of the steps: what each does. Their order is `smp`'s. Context: vcpu 0, all others parked.
struct Sequence {
    info: start_info::Page,
    /// Xen's wall clock at system time 0: it stands in `shared_info`, which is unmapped when it is wanted.
    wall_zero_ns: u64,
    /// The TSC just before the hypercall, and how to read it.
    left_tsc: u64,
    before: Scale,
    /// The TSC at the first instruction after the hypercall, and how to read it. All that is told of these two instants comes from
    /// these: Xen's record may change at any time, and the clocks of two processors need not agree.
    back_tsc: u64,
    after: Scale,
}

impl Sequence {
    fn new() -> Sequence {
        let now = Scale::now();
        Sequence { info: start_info::page(), wall_zero_ns: 0, left_tsc: 0, before: now, back_tsc: 0, after: now }
    }

    /// Guest time at the hypercall.
    fn suspended_ns(&self) -> u64 {
        self.before.guest_ns(self.left_tsc)
    }

    /// Guest time at its return.
    fn back_ns(&self) -> u64 {
        self.after.guest_ns(self.back_tsc).max(self.suspended_ns())
    }

    /// # Errors
    /// Xen's.
    fn map_shared_info(&self) -> Result<(), StepError> {
        memory::map_shared_info(self.info.shared_info_maddr()).map(drop).map_err(StepError::Memory)
    }

    fn attach(others: &Quiesced, ports: Ports) -> Result<(), StepError> {
        // SAFETY: mapped by the step before, until the next suspend detaches it; parked CPUs do not enter the demultiplexer.
        unsafe { events::get().attach(others, memory::shared_info_place(), ports) }.map_err(StepError::Events)
    }
}

impl Steps for Sequence {
    type Error = StepError;

    fn prepare(&mut self, step: Prepare, others: &Quiesced, masked: &Masked) -> Result<(), StepError> {
        match step {
            Prepare::MaskLegacySlots => mask_legacy_slots(),
            Prepare::DetachEvents => events::get().detach(others),
            Prepare::UnmapSharedInfo => {
                self.wall_zero_ns = time::wall_at_system_zero_ns(shared_info());
                memory::unmap_shared_info(others).map_err(StepError::Memory)?;
            }
            Prepare::MfnsToPfns => self.info.rings_to_pfns(),
            Prepare::TakeOthersDown => cpus::take_others_down(others).map_err(StepError::Others)?,
        }
        trace::mark(masked, Mark::prepared(step));
        Ok(())
    }

    fn undo(&mut self, step: Prepare, others: &Quiesced, masked: &Masked) {
        match step {
            // Dead memory in this domain, which is never placed again.
            Prepare::MaskLegacySlots => {}
            Prepare::DetachEvents => {
                if let Err(error) = Sequence::attach(others, Ports::Kept) {
                    panic!("event channels, which were as they are: {error}");
                }
            }
            Prepare::UnmapSharedInfo => {
                if let Err(error) = self.map_shared_info() {
                    panic!("shared_info, without which no event is ever seen: {error}");
                }
            }
            Prepare::MfnsToPfns => self.info.rings_to_mfns(),
            Prepare::TakeOthersDown => {
                if let Err(error) = cpus::bring_others_up() {
                    panic!("after a suspend that changed nothing: {error}");
                }
            }
        }
        trace::mark(masked, Mark::undone(step));
    }

    fn suspend(&mut self, _others: &Quiesced, masked: &Masked) -> Result<SuspendOutcome, Errno> {
        let vectors = vector::Saved::of_this_cpu();
        (self.before, self.left_tsc) = (Scale::now(), time::tsc());
        trace::suspending(masked, self.before, self.left_tsc);
        // SAFETY: all others are parked in their loop, and down. start_info has been canonicalised, and shared_info, the only frame that
        //   is not ours, is unmapped. No mfn that is kept over the call is used after it but this argument.
        let outcome = unsafe { sched::suspend(self.info.mfn().get()) };
        self.back_tsc = time::tsc();
        trace::mark_at(masked, Mark::Back, self.back_tsc);
        if outcome == Ok(SuspendOutcome::Continued) {
            vectors.restore_in_same_domain();
        }
        if outcome != Ok(SuspendOutcome::Resumed) {
            self.after = Scale::now();
        }
        outcome
    }

    fn take_over(&mut self, step: TakeOver, others: &Quiesced, masked: &Masked) -> Result<(), StepError> {
        match step {
            TakeOver::MapSharedInfo => self.map_shared_info()?,
            TakeOver::MaskLegacySlots => mask_legacy_slots(),
            TakeOver::PlaceBootVcpuInfo => cpus::place_vcpu_info(masked).map_err(StepError::Cpu)?,
            TakeOver::RebaseClock => {
                let before = Before::of(&self.before, self.left_tsc, self.wall_zero_ns, others);
                let wall_zero_ns = time::wall_at_system_zero_ns(shared_info());
                self.after = time::rebase(others, before, self.back_tsc, wall_zero_ns);
            }
            TakeOver::PublishP2m => memory::publish_p2m(&shared_info().arch).map_err(StepError::Memory)?,
            TakeOver::AttachEvents => {
                Sequence::attach(others, Ports::Gone)?;
                cpus::make_gate(others);
            }
            TakeOver::BindForOthers => cpus::bind_for_others(others).map_err(StepError::Cpu)?,
            TakeOver::InitialiseOthers => cpus::initialise_others(others, masked).map_err(StepError::Others)?,
        }
        trace::mark(masked, Mark::took_over(step));
        Ok(())
    }

    /// # Panics
    /// Always. All others are down, or wait, so that this reason is the one that is told.
    fn lost(&mut self, failed: Failed<TakeOver, StepError>, _others: &Quiesced, _masked: &Masked) -> ! {
        panic!("resume: {failed}");
    }

    fn begin_roll_call(&mut self, others: &Quiesced) {
        cpus::begin_roll_call(others);
    }
}

/// `shared_info`, in the steps during which it is mapped.
fn shared_info() -> &'static SharedInfo {
    // SAFETY: called before `Prepare::UnmapSharedInfo` and after `TakeOver::MapSharedInfo` only; the borrow ends in the step.
    unsafe { memory::shared_info_place().as_ref() }
}

/// Masks every legacy slot. They are dead memory until a restore, when Xen takes vcpu 0's mask from there, with which it goes on; and
/// placing one of the first 32 vcpus' `vcpu_info` copies the mask.
fn mask_legacy_slots() {
    // Opaque, so that it stays a loop: after a restore all code is cold, and costs by its length.
    for slot in black_box(&shared_info().vcpu_info[..]) {
        // ORDERING: Relaxed, read by Xen and the toolstack once we are suspended.
        slot.evtchn_upcall_mask.store(1, Ordering::Relaxed);
        slot.evtchn_upcall_pending.store(0, Ordering::Relaxed);
    }
}

//! Suspend and resume: the sequence, on vcpu 0.
//!
//! | step | where | undone by |
//! |---|---|---|
//! | xenstore quiet | [`serve`], awaits | `Quiet::resume` |
//! | all other vcpus parked | `cpus::rendezvous` | its release |
//! | legacy upcall masks 1, `shared_info` unmapped, store and console mfn to pfn | [`prepare`] | [`put_back`], or after a restore [`take_over`] |
//! | `SCHEDOP_shutdown(SHUTDOWN_suspend)` | [`quiesced`] | |
//!
//! `Resumed` is a new domain: [`take_over`] does what must be done once, in order; then every vcpu binds its own things, in
//! parallel (`cpus::bind`). `Continued` is the same domain: what was taken away is put back, and nothing else is touched.
//!
//! Between quiesce and release: no lock, no allocation (the heap is sealed), no line on the console.
//! Cost of the serial part: 3 hypercalls before the suspend's own; after `Resumed` 5 and 2 for each device port; after `Continued` 1.

use core::fmt;

use evtchn::{Action, PortNr, Ports};
use mm::MmError;
use percpu::{CpuId, Masked, Quiesced};
use smp::{Missing, Outcome};
use xen_sys::Errno;
use xen_sys::abi::xen::{SharedInfo, StartInfo};
use xen_sys::hypercall::sched::{self, SuspendOutcome};
use xen_sys::primitive::sync::atomic::{AtomicU64, Ordering};
use xenbus::Store;

use crate::cpus::{self, Laggards};
use crate::time::{Before, Rebased, TimeRecord};
use crate::{console, control, events, heap, memory, time, timer, workload};

/// How long xenstored may take to answer what is under way when a suspend is asked for.
const QUIET_LIMIT_NS: u64 = 20_000_000_000;

/// Where `start_info` is. Written once, at boot.
static START_INFO_PFN: AtomicU64 = AtomicU64::new(0);

static CONSOLE: Action = Action::new(|_, _| console::on_event(), 0);
static STORE: Action = Action::new(|_, _| control::on_event(), 1);

/// Remembers the page of `start_info`. Boot, once.
pub(crate) fn init(start_info_pfn: u64) {
    // ORDERING: Relaxed, read by vcpu 0 only.
    START_INFO_PFN.store(start_info_pfn, Ordering::Relaxed);
}

/// `start_info`, through the direct map. Xen and the toolstack write to it while we are suspended.
fn start_info() -> *mut StartInfo {
    // ORDERING: Relaxed, written by vcpu 0.
    memory::direct(START_INFO_PFN.load(Ordering::Relaxed))
}

/// Binds the ports that the toolstack gave us. Boot, and again in every new life of the domain; vcpu 0.
///
/// # Panics
/// If a port is none: the toolstack's numbers are all we have to live on.
pub(crate) fn connect_devices(console_port: u32, store_port: u32) {
    for (action, port) in [(&CONSOLE, console_port), (&STORE, store_port)] {
        let nr = PortNr::new(port).unwrap_or_else(|| panic!("start_info: port {port} is out of range"));
        if let Err(error) = events::get().bind_device(nr, CpuId::BOOT, action) {
            panic!("start_info: port {port}: {error}");
        }
    }
    control::set_port(store_port);
}

/// Why a suspend did not take place.
enum Abort {
    /// xenstored does not answer.
    StoreBusy,
    /// vcpus did not come to the rendezvous.
    Missing(Missing),
    /// Nothing to undo was left: Xen or our page tables refused.
    Refused(Refused),
}

#[derive(Debug)]
enum Refused {
    Unmap(MmError),
    Hypercall(Errno),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Unmap(error) => write!(f, "shared_info: {error}"),
            Refused::Hypercall(errno) => write!(f, "SCHEDOP_shutdown: {errno}"),
        }
    }
}

/// What is known of a suspend right after it.
struct Report {
    outcome: SuspendOutcome,
    /// Guest time at the hypercall, and at the first instruction after it.
    suspended_ns: u64,
    back_ns: u64,
    /// Of a new domain.
    ports: Option<(u32, u32)>,
}

/// Answers a request to suspend. It has been acknowledged. Context: the control task, on vcpu 0.
pub(crate) async fn serve(store: &'static Store, via: &str) {
    let seen_ns = time::now_ns();
    crate::say!("suspend-request", via = via);
    let report = match timer::within(QUIET_LIMIT_NS, store.quiesce()).await {
        Ok(Ok(quiet)) => {
            let result = run();
            let outcome = result.as_ref().map_or(SuspendOutcome::Continued, |report| report.outcome);
            quiet.resume(outcome);
            result
        }
        // This task alone quiesces the store.
        Ok(Err(_)) | Err(timer::TimeIsUp) => Err(Abort::StoreBusy),
    };
    match report {
        Ok(report) => tell(seen_ns, &report).await,
        Err(abort) => tell_abort(&abort),
    }
}

fn tell_abort(abort: &Abort) {
    match abort {
        Abort::StoreBusy => crate::say!("suspend-abort", reason = "xenstore-busy", missing = "none"),
        Abort::Missing(missing) => {
            crate::say!("suspend-abort", reason = "rendezvous", missing = missing.cpus, states = Laggards(missing));
        }
        Abort::Refused(why) => crate::say!("suspend-abort", reason = why, missing = "none"),
    }
}

async fn tell(seen_ns: u64, report: &Report) {
    let (slowest, alive_ns) = cpus::all_alive().await;
    let incarnation = events::get().incarnation();
    let prepare_ns = report.suspended_ns.saturating_sub(seen_ns);
    let blackout_ns = report.back_ns.saturating_sub(report.suspended_ns);
    let resume_ns = alive_ns.saturating_sub(report.back_ns);
    match report.outcome {
        SuspendOutcome::Resumed => crate::say!(
            "resumed",
            incarnation = incarnation,
            vcpus = cpus::nr(),
            prepare_ns = prepare_ns,
            blackout_ns = blackout_ns,
            resume_ns = resume_ns,
            slowest_vcpu = slowest,
        ),
        SuspendOutcome::Continued => crate::say!(
            "continued",
            incarnation = incarnation,
            vcpus = cpus::nr(),
            prepare_ns = prepare_ns,
            blackout_ns = blackout_ns,
            resume_ns = resume_ns,
            slowest_vcpu = slowest,
        ),
    }
    workload::after_suspend();
    control::publish(&[
        ("incarnation", incarnation.get().into()),
        ("vcpus", cpus::nr() as u64),
        ("prepare_ns", prepare_ns),
        ("blackout_ns", blackout_ns),
        ("resume_ns", resume_ns),
        ("slowest_vcpu", slowest.vcpu().into()),
    ])
    .await;
}

/// Parks all others, suspends, and brings vcpu 0 back.
fn run() -> Result<Report, Abort> {
    console::dirty_ring();
    // Kept until this vcpu is whole again: the guards inside nest in it.
    let masked = percpu::mask_upcalls();
    let result = cpus::rendezvous(|others, masked| {
        heap::get().seal();
        let result = quiesced(others, masked);
        heap::get().unseal();
        match &result {
            Ok(Report { outcome: SuspendOutcome::Resumed, .. }) => (Outcome::Resumed, result),
            Ok(Report { outcome: SuspendOutcome::Continued, .. }) => (Outcome::Continued, result),
            Err(_) => (Outcome::Cancelled, result),
        }
    });
    let report = result.map_err(Abort::Missing)?.map_err(Abort::Refused)?;
    match report.ports {
        Some((console_port, store_port)) => {
            cpus::restore_boot_cpu(&masked);
            connect_devices(console_port, store_port);
            console::set_port(console_port);
        }
        None => cpus::continue_this_cpu(&masked),
    }
    Ok(report)
}

/// The suspend itself. Context: vcpu 0, all others parked.
fn quiesced(others: &Quiesced, masked: &Masked) -> Result<Report, Refused> {
    let kept = prepare(others).map_err(Refused::Unmap)?;
    let before = {
        let guest_ns = time::now_ns();
        Before { guest_ns, wall_ns: time::wall_ns(guest_ns) }
    };
    let start_info_mfn = kept.start_info_mfn;
    // SAFETY: all others are parked in their loop. start_info has been canonicalised, and shared_info, the only frame that is
    //   not ours, is unmapped. No mfn is kept over the call: `take_over` looks up each anew.
    let outcome = unsafe { sched::suspend(start_info_mfn) };
    let tsc = time::tsc();
    match outcome {
        Ok(SuspendOutcome::Resumed) => Ok(take_over(others, masked, before, tsc)),
        Ok(SuspendOutcome::Continued) => {
            put_back(others, &kept);
            cpus::begin_roll_call(others);
            let back_ns = time::to_guest_ns(TimeRecord::read(&percpu::vcpu_info().time).system_time_ns(tsc));
            let suspended_ns = before.guest_ns;
            Ok(Report {
                outcome: SuspendOutcome::Continued,
                suspended_ns,
                back_ns: back_ns.max(suspended_ns),
                ports: None,
            })
        }
        Err(errno) => {
            put_back(others, &kept);
            Err(Refused::Hypercall(errno))
        }
    }
}

/// What [`put_back`] needs. Mfns of this domain: not to be used in another.
struct Kept {
    start_info_mfn: u64,
    store_mfn: u64,
    console_mfn: u64,
    shared_info_maddr: u64,
}

/// Takes away what the toolstack must not find, in the order of the table above.
fn prepare(others: &Quiesced) -> Result<Kept, MmError> {
    let info = start_info();
    // SAFETY: the page is ours, and nobody else writes to it while we run.
    let (store_mfn, console_mfn, shared_info_maddr) =
        unsafe { ((*info).store_mfn, (*info).console.domU.mfn, (*info).shared_info) };
    mask_legacy(shared_info());
    events::get().detach(others);
    if let Err(error) = memory::unmap_shared_info(others) {
        // SAFETY: it is still mapped, as it was.
        unsafe { events::get().attach(others, mapped_shared_info(), Ports::Kept) };
        return Err(error);
    }
    let pfn =
        |mfn| memory::pfn_of_mfn(mfn).expect("the rings were our own memory at boot, and are after every restore");
    // SAFETY: as above.
    unsafe {
        (*info).store_mfn = pfn(store_mfn);
        (*info).console.domU.mfn = pfn(console_mfn);
    }
    Ok(Kept { start_info_mfn: memory::mfn_of(info), store_mfn, console_mfn, shared_info_maddr })
}

/// The same domain goes on: undoes [`prepare`].
///
/// # Panics
/// If `shared_info` cannot be mapped again: without it no event is ever seen.
fn put_back(others: &Quiesced, kept: &Kept) {
    let info = start_info();
    // SAFETY: as in `prepare`.
    unsafe {
        (*info).store_mfn = kept.store_mfn;
        (*info).console.domU.mfn = kept.console_mfn;
    }
    let page = memory::map_shared_info(kept.shared_info_maddr).unwrap_or_else(|error| panic!("shared_info: {error}"));
    // SAFETY: mapped just now; parked CPUs do not enter the demultiplexer.
    unsafe { events::get().attach(others, page, Ports::Kept) };
}

/// A new domain: everything that has to be done once, before the others are released. What each vcpu does for itself follows.
///
/// # Panics
/// If Xen refuses any of it: there is no way to go on, and none to go back.
fn take_over(others: &Quiesced, masked: &Masked, before: Before, tsc: u64) -> Report {
    let info = start_info();
    // SAFETY: the toolstack has filled in the new domain's values; nobody writes to it while we run.
    let (maddr, console_port, store_port) =
        unsafe { ((*info).shared_info, (*info).console.domU.evtchn, (*info).store_evtchn) };
    let page = memory::map_shared_info(maddr).unwrap_or_else(|error| panic!("resume: shared_info: {error}"));
    // SAFETY: mapped, and made of atomics.
    let shared = unsafe { page.as_ref() };
    mask_legacy(shared);
    cpus::place_vcpu_info(masked).unwrap_or_else(|error| panic!("resume: vcpu 0: {error}"));
    let system_ns = TimeRecord::read(&percpu::vcpu_info().time).system_time_ns(tsc);
    let rebased = Rebased::new(before, system_ns, time::wall_at_system_zero_ns(shared));
    rebased.set(others);
    memory::publish_p2m(&shared.arch).unwrap_or_else(|error| panic!("resume: p2m: {error}"));
    // SAFETY: mapped just now; parked CPUs do not enter the demultiplexer.
    unsafe { events::get().attach(others, page, Ports::Gone) };
    cpus::begin_roll_call(others);
    Report {
        outcome: SuspendOutcome::Resumed,
        suspended_ns: before.guest_ns,
        back_ns: rebased.guest_ns,
        ports: Some((console_port, store_port)),
    }
}

fn mapped_shared_info() -> core::ptr::NonNull<SharedInfo> {
    core::ptr::NonNull::new(mm::fixmap::Slot::SHARED_INFO.as_ptr()).expect("the fixmap is not at 0")
}

/// `shared_info`, while it is mapped.
fn shared_info() -> &'static SharedInfo {
    // SAFETY: called by `prepare` only, which has not unmapped it yet; the borrow ends there.
    unsafe { mapped_shared_info().as_ref() }
}

/// Masks every legacy slot. They are dead memory until a restore, when Xen takes the first 32 vcpus' masks from them: unmasked,
/// an upcall could strike a parked vcpu, and placing a `vcpu_info` copies the mask.
fn mask_legacy(shared: &SharedInfo) {
    for slot in &shared.vcpu_info {
        // ORDERING: Relaxed, read by Xen and the toolstack once we are suspended.
        slot.evtchn_upcall_mask.store(1, Ordering::Relaxed);
        slot.evtchn_upcall_pending.store(0, Ordering::Relaxed);
    }
}

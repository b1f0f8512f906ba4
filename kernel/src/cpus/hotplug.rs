//! vcpus that go down and come back while the others run: what the kernel does around [`smp::Hotplug`].
//!
//! | who | goes down | comes back |
//! |---|---|---|
//! | vcpu 0, a task | one rendezvous for all that leave; then nothing else until Xen says that each is down | `VCPUOP_up`, in a new life of the domain after a full start; then waits until it answers a call |
//! | the vcpu, between two tasks | puts back what it had taken off its run queue, cancels its timer, serves its inbox for the last time | serves its inbox, which opens it; its executor wakes who has slept too long |
//!
//! Its tasks stay its own, and wait: whoever makes one ready meanwhile does so for the time after. Its ports stay bound.
//! Which vcpus are to be up is decided in `crate::hotplug`.
//!
//! Suspend: who is down is *kept*; in a new domain it is started as one that never ran, on the stack and with the area that it
//! had: nothing is left on that stack that anybody wants.

use alloc::boxed::Box;
use core::fmt;

use evtchn::PortNr;
use mm::MmError;
use percpu::{Area, CpuId, CpuSet, PerCpu, Quiesced};
use smp::bring_up::{self, Start, StartError};
use smp::{CallNode, Missing, NotPosted, WayUp};
use spin::Once;
use xen_sys::abi::arch::VcpuGuestContext;
use xen_sys::hypercall::misc::set_timer_op;

use super::bind::vcpu_info_place;
use super::{Laggards, State, as_leader, get, mail, note};
use crate::{events, memory, time, timer, trace, traps};

/// How long a vcpu that has been started may take to answer its first call.
const ANSWER_LIMIT_NS: u64 = 20_000_000_000;
/// Between two looks for what comes soon or not at all.
const LOOK_NS: u64 = 200_000;

/// What a vcpu starts with, made once for each and used again in every life of the domain.
pub(super) struct Place {
    pub(super) area: &'static Area,
    pub(super) gs_base: u64,
    pub(super) stack_top: u64,
}

static PLACES: Once<PerCpu<Once<Place>>> = Once::new();

/// Whether `cpu` is up. On vcpu 0 exact; elsewhere it may be over when it is read.
pub(crate) fn is_up(cpu: CpuId) -> bool {
    get().hotplug.is_up(cpu)
}

/// Whether `cpu` is down; one that is neither has been told to go down, and has not. Context: vcpu 0.
pub(crate) fn is_down(cpu: CpuId) -> bool {
    get().hotplug.is_down(cpu)
}

/// How many vcpus are up. As [`is_up`].
pub(crate) fn nr_up() -> usize {
    get().hotplug.nr_up()
}

/// How often `cpu` has come up or gone down: the same number twice means that it was up, or down, all the time.
pub(crate) fn changes(cpu: CpuId) -> u32 {
    get().hotplug.changes(cpu)
}

/// Why a vcpu is not brought up.
#[derive(Debug)]
pub(crate) enum UpError {
    Memory(MmError),
    Start(StartError),
    NoAnswer,
}

impl fmt::Display for UpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UpError::Memory(error) => write!(f, "stack: {error}"),
            UpError::Start(error) => error.fmt(f),
            UpError::NoAnswer => f.write_str("no answer to the first call"),
        }
    }
}

/// Why vcpus stay up.
#[derive(Debug)]
pub(crate) enum DownError {
    /// vcpus did not come to the rendezvous, or do not go down.
    Missing(Missing),
    /// A device's port notifies one of them.
    Device(PortNr, CpuId),
}

impl fmt::Display for DownError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DownError::Missing(missing) => write!(f, "{missing}: {}", Laggards(missing)),
            DownError::Device(nr, cpu) => write!(f, "device port {} notifies vcpu {cpu}; move it first", nr.get()),
        }
    }
}

fn place_of(cpu: CpuId) -> Result<&'static Place, MmError> {
    PLACES.call_once(|| PerCpu::new(super::nr(), |_| Once::new())).on(cpu).try_call_once(|| {
        let stack_top = memory::map_stack(cpu)?;
        let area: &'static Area = Box::leak(Box::new(Area::new(cpu)));
        Ok(Place { area, gs_base: area.link(), stack_top })
    })
}

/// The same, for one that has been started before.
pub(super) fn place_made_for(cpu: CpuId) -> &'static Place {
    PLACES.get().and_then(|places| places.on(cpu).get()).expect("one that is up has been started")
}

/// What a vcpu starts with at `entry`, in this life of the domain. Context: as for [`Start::context`].
pub(super) fn context_at(entry: u64, stack_top: u64, gs_base: u64) -> Box<VcpuGuestContext> {
    let start = Start {
        entry,
        stack_top,
        argument: 0,
        gs_base,
        root_mfn: memory::root_mfn().get(),
        traps: &traps::table(),
        upcall_entry: traps::upcall_entry(),
        failsafe_entry: traps::failsafe_entry(),
        syscall_entry: traps::syscall_entry(),
    };
    start.context()
}

/// Starts `cpu`, which is down; it finds its own feet at the same time as others. Context: task or boot, on vcpu 0.
///
/// # Errors
/// No memory, or Xen's; it is down then.
pub(super) fn start(cpu: CpuId) -> Result<(), UpError> {
    let hotplug = &get().hotplug;
    let life = events::get().incarnation().get();
    let way = hotplug.way_up(cpu, life);
    let place = match way {
        WayUp::Restart => None,
        WayUp::Start | WayUp::StartPlaced => Some(place_of(cpu).map_err(UpError::Memory)?),
    };
    hotplug.comes_up(cpu);
    let started = match place {
        None => bring_up::restart(&bring_up::Xen, &get().rendezvous, cpu),
        Some(Place { area, gs_base, stack_top }) => {
            let context = context_at(boot::secondary_entry(), *stack_top, *gs_base);
            let rendezvous = &get().rendezvous;
            if way == WayUp::StartPlaced {
                // SAFETY: entries and root are the kernel's own; stack and area are this vcpu's, which does not run: what it
                //   left there in an earlier life of the domain nobody goes back to.
                unsafe { bring_up::start_placed(&bring_up::Xen, rendezvous, cpu, &context) }
            } else {
                // SAFETY: the area is never freed and reached through shared references only (AR1). The rest as above.
                unsafe { bring_up::start(&bring_up::Xen, rendezvous, cpu, vcpu_info_place(area), &context) }
            }
        }
    };
    started.map_err(|error| {
        hotplug.did_not_start(&error, life);
        UpError::Start(error)
    })
}

/// Brings `cpu` up, which is down, and waits until it takes IPIs. Context: task on vcpu 0; one at a time.
///
/// # Errors
/// As for a start; `NoAnswer`: it has been started, and is not heard of.
pub(crate) async fn bring_up(cpu: CpuId) -> Result<(), UpError> {
    static ANSWER: CallNode = CallNode::new();
    start(cpu)?;
    let deadline_ns = time::now_ns() + ANSWER_LIMIT_NS;
    loop {
        match mail().call(cpu, &ANSWER, |_, _| (), 0) {
            Ok(answer) => {
                let left_ns = deadline_ns.saturating_sub(time::now_ns());
                return timer::within(left_ns, answer).await.map_err(|timer::TimeIsUp| UpError::NoAnswer);
            }
            // It has not opened its inbox; or one that never answered still has the node.
            Err(NotPosted::Down | NotPosted::Busy) if time::now_ns() < deadline_ns => timer::sleep(LOOK_NS).await,
            Err(_) => return Err(UpError::NoAnswer),
        }
    }
}

/// Takes down those of `cpus` that are up, all at once; vcpu 0 stays up. Returns when Xen says that they are down, those too that were
/// told to go down before. Context: task on vcpu 0.
///
/// # Errors
/// All are up then as before, or are [neither up nor down](is_down) and named.
pub(crate) async fn take_down(cpus: &CpuSet) -> Result<(), DownError> {
    // A round that is going waits for them.
    while !get().roll_call.is_complete() {
        timer::sleep(LOOK_NS).await;
    }
    let life = events::get().incarnation().get();
    let check = |others: &Quiesced| {
        if let Some((nr, cpu)) = events::get().first_device_on(others, cpus) {
            return Err((nr, cpu));
        }
        for cpu in cpus.iter().filter(|cpu| *cpu != CpuId::BOOT && is_up(*cpu)) {
            events::get().close_cpu(others, cpu);
        }
        Ok(())
    };
    #[expect(clippy::result_large_err, reason = "as in `rendezvous`")]
    let taken = trace::aside(|| {
        as_leader(|lead| get().hotplug.take_down(&get().rendezvous, lead, &bring_up::Xen, (cpus, life), check))
    });
    taken.map_err(DownError::Missing)?.map_err(|(nr, cpu)| DownError::Device(nr, cpu))
}

/// Goes down, and returns when this CPU is up again. Context: the executor, between tasks, when it has left a rendezvous in which
/// it was told to.
///
/// # Panics
/// If Xen refuses: vcpu 0 waits for nothing else.
pub(crate) fn leave() {
    let masked = percpu::mask_upcalls();
    note(State::Down);
    // It would only make an event pending that nobody waits for.
    set_timer_op(0).expect("Xen takes any deadline");
    if let Err(errno) = get().hotplug.go_down(mail(), &masked, &bring_up::Xen) {
        panic!("vcpu {}: VCPUOP_down: {errno}", percpu::current());
    }
    note(State::Starting);
    timer::forget_armed(&masked);
    events::get().reopen_cpu(&masked);
    mail().serve(&masked);
}

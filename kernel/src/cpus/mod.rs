//! The vcpus of this domain: how many, how they are started, how they reach and await each other.
//!
//! | kind of state | where | suspend |
//! |---|---|---|
//! | inboxes | `smp::Mail` | *kept*; each CPU looks once after it has bound its port anew |
//! | rendezvous | `smp::Rendezvous` | *kept* |
//! | who is up | `smp::Hotplug` | *kept* |
//! | proof of life | `smp::RollCall` | *rebuilt*, begun by vcpu 0 |
//! | what each CPU is doing | [`state_racy`] | *kept* |

mod bind;
mod bring_up;
mod hotplug;
mod park;

use core::fmt;

use evtchn::Ipi;
use percpu::{CpuId, Masked, PerCpu, Quiesced};
use smp::trace::Mark;
use smp::{Clock, Delivery, Hotplug, Kind, Kinds, Lead, Mail, Missing, Outcome, Rendezvous, RollCall};
use spin::Once;
use xen_sys::abi::vcpu::{RUNSTATE_blocked, RUNSTATE_offline, RUNSTATE_runnable, RUNSTATE_running};
use xen_sys::hypercall::vcpu;
use xen_sys::primitive::sync::atomic::{AtomicU8, Ordering};

use crate::relax::Processor;
use crate::{events, time, trace};

pub(crate) use bind::{CpuError, Placed, all_alive, place_vcpu_info, restore_this_cpu};
pub(crate) use bring_up::{count, online, start_boot_cpu, start_others};
pub(crate) use hotplug::{bring_up, changes, is_up, leave, nr_up, take_down};
pub(crate) use park::{AfterPark, park_if_asked, park_is_asked};

/// How long a rendezvous waits for everybody.
const RENDEZVOUS_LIMIT_NS: u64 = 10_000_000_000;

struct Cpus {
    nr: usize,
    mail: Mail<Deliver>,
    rendezvous: Rendezvous,
    hotplug: Hotplug,
    roll_call: RollCall,
    states: PerCpu<AtomicState>,
}

static CPUS: Once<Cpus> = Once::new();

fn get() -> &'static Cpus {
    CPUS.get().expect("start_boot_cpu() comes first")
}

/// How many vcpus the domain has, up or down; 0 before they have been counted.
pub(crate) fn nr() -> usize {
    CPUS.get().map_or(0, |cpus| cpus.nr)
}

/// Begins a new proof of life of all vcpus that are up. Context: vcpu 0, all others parked.
pub(crate) fn begin_roll_call(others: &Quiesced) {
    get().roll_call.begin(others, is_up);
}

/// The inboxes.
pub(crate) fn mail() -> &'static Mail<Deliver> {
    &get().mail
}

/// How the mail of this kernel rings, and what it does when it is rung.
pub(crate) struct Deliver;

impl Delivery for Deliver {
    fn ring(&self, cpu: CpuId) {
        // Unbound: the CPU looks into its inbox once it has bound its port. Refused is counted there.
        let _ = events::get().send_ipi(cpu, Ipi::Call);
    }

    fn ring_many(&self, cpus: &[CpuId]) {
        // As above, for each.
        events::get().send_ipis(cpus, Ipi::Call);
    }

    fn handle(&self, masked: &Masked, kinds: Kinds) {
        if kinds.contains(Kind::Alive) {
            bind::took_ipi(masked);
        }
        if kinds.contains(Kind::Rendezvous) {
            trace::kicked(masked);
        }
        // Reschedule and Rendezvous need no more than that the CPU wakes up: its executor looks.
    }

    fn mark(&self, masked: &Masked, mark: Mark) {
        trace::mark(masked, mark);
    }
}

/// Has `cpu` look at its run queue. Context: any; lock-free.
pub(crate) fn reschedule(cpu: CpuId) {
    mail().post(cpu, Kind::Reschedule);
}

/// VIRQ_TIMER came. Context: upcall.
pub(crate) fn took_timer(masked: &Masked) {
    bind::took_timer(masked);
}

struct GuestClock;

impl Clock for GuestClock {
    fn now_ns(&self) -> u64 {
        time::now_ns()
    }
}

/// Does `work` while every other vcpu is parked. Context: a task on vcpu 0.
///
/// # Errors
/// Who did not come in time; `work` was not begun.
#[expect(clippy::result_large_err, reason = "a set of 1024 CPUs, on a path that does not allocate")]
pub(crate) fn rendezvous<T>(work: impl FnOnce(&Quiesced, &Masked) -> (Outcome, T)) -> Result<T, Missing> {
    let lead = Lead { mail: mail(), relax: &Processor, clock: &GuestClock, limit_ns: RENDEZVOUS_LIMIT_NS };
    let masked = percpu::mask_upcalls();
    get().rendezvous.run(&masked, &lead, work)
}

/// What a CPU was doing when it last said so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum State {
    Starting,
    Task,
    Idle,
    Parked,
    Down,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Starting => "starting",
            State::Task => "task",
            State::Idle => "idle",
            State::Parked => "parked",
            State::Down => "down",
        })
    }
}

/// A word that holds a [`State`] and nothing else. Written by its own CPU.
struct AtomicState(AtomicU8);

fn note(state: State) {
    // ORDERING: Relaxed, shown to people.
    get().states.mine().0.store(state as u8, Ordering::Relaxed);
}

/// This CPU runs a task.
pub(crate) fn note_running() {
    note(State::Task);
}

/// This CPU is about to block.
pub(crate) fn note_idle() {
    note(State::Idle);
}

/// What `cpu` said last of what it is doing.
pub(crate) fn state_racy(cpu: CpuId) -> State {
    // ORDERING: Relaxed, shown to people.
    match get().states.on(cpu).0.load(Ordering::Relaxed) {
        1 => State::Task,
        2 => State::Idle,
        3 => State::Parked,
        4 => State::Down,
        _ => State::Starting,
    }
}

/// What Xen does with a vcpu right now, for people. Costs a hypercall to ask for; any context.
pub(crate) struct Scheduled(Option<u32>);

impl Scheduled {
    pub(crate) fn of(cpu: CpuId) -> Scheduled {
        Scheduled(vcpu::get_runstate_info(cpu.vcpu()).ok().map(|info| info.state))
    }
}

impl fmt::Display for Scheduled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (RUNSTATE_running, "running"),
            (RUNSTATE_runnable, "runnable"),
            (RUNSTATE_blocked, "blocked"),
            (RUNSTATE_offline, "offline"),
        ];
        let name = names.iter().find(|(state, _)| Some(*state) == self.0);
        f.write_str(name.map_or("unknown", |(_, name)| *name))
    }
}

/// The vcpus that did not come, with what each was doing, for people.
pub(crate) struct Laggards<'a>(pub(crate) &'a Missing);

impl fmt::Display for Laggards<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, cpu) in self.0.cpus.iter().enumerate() {
            let separator = if n == 0 { "" } else { ", " };
            write!(f, "{separator}vcpu {cpu}: {} {}", state_racy(cpu), Scheduled::of(cpu))?;
        }
        Ok(())
    }
}

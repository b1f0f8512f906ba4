//! The vcpus of this domain: how many, how they are started, how they reach and await each other.
//!
//! | kind of state | where | suspend |
//! |---|---|---|
//! | inboxes | `smp::Mail` | *kept*; each CPU looks once after it has bound its port anew |
//! | rendezvous | `smp::Rendezvous` | *kept* |
//! | who is up | `smp::Hotplug` | *kept* |
//! | what brings back who is down over a suspend | [`away`] | stacks *kept*, root's mfn *rebuilt* |
//! | proof of life | `smp::RollCall` | *rebuilt*, begun by vcpu 0 |
//! | what each CPU is doing | [`state_racy`] | *kept* |

mod away;
mod bind;
mod bring_up;
mod gate;
mod hotplug;
mod laggards;
mod park;

use core::fmt;

use evtchn::{Ipi, PortNr};
use percpu::{CpuId, CpuSet, Masked, PerCpu, Quiesced};
use smp::trace::Mark;
use smp::{Awaited, Clock, Delivery, Hotplug, Kind, Kinds, Lead, Limits, Mail, Missing, Outcome, Rendezvous, RollCall};
use spin::Once;
use xen_sys::primitive::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::given::Given;
use crate::logfmt::Line;
use crate::{console, events, time, trace};

use away::Away;
pub(crate) use away::{bring_others_up, initialise_others, take_others_down};
pub(crate) use bind::{CpuError, all_alive, bind_for_others, place_vcpu_info, restore_this_cpu, take_what_came};
pub(crate) use bring_up::{count, online, start_boot_cpu, start_others};
pub(crate) use hotplug::{bring_up, changes, is_down, is_up, leave, nr_up, take_down};
pub(crate) use laggards::Laggards;
use laggards::LastSeen;
pub(crate) use park::{AfterPark, park_if_asked, park_is_asked};

/// How long a rendezvous waits for everybody. Named well within a second; given up when nobody has come for a time that no scheduler
/// of Xen's takes to give one of many vcpus its turn (slices are 30 ms with `sched=credit`, and shorter else), and in any case before
/// the toolstack, which waits for 60 s, takes the guest for dead: what comes before it is over within 25 s (`suspend.rs`, `suspend_port.rs`).
const LIMITS: Limits = Limits { overdue_ns: 500_000_000, stuck_ns: 8_000_000_000, total_ns: 30_000_000_000 };

struct Cpus {
    nr: usize,
    mail: Mail<Deliver>,
    rendezvous: Rendezvous,
    hotplug: Hotplug,
    /// `None`: each binds its own.
    given: Option<Given>,
    roll_call: RollCall,
    states: PerCpu<AtomicState>,
    last_seen: PerCpu<LastSeen>,
    away: Away,
}

static CPUS: Once<Cpus> = Once::new();

fn get() -> &'static Cpus {
    CPUS.get().expect("start_boot_cpu() comes first")
}

/// How many vcpus the domain has, up or down; 0 before they have been counted.
pub(crate) fn nr() -> usize {
    CPUS.get().map_or(0, |cpus| cpus.nr)
}

/// All vcpus that are up, but vcpu 0. Context: vcpu 0.
fn up_others() -> impl Iterator<Item = CpuId> {
    CpuId::first(nr()).filter(|cpu| *cpu != CpuId::BOOT && is_up(*cpu))
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
    #[inline]
    fn ring(&self, cpu: CpuId) {
        // Unbound: the CPU looks into its inbox once it has bound its port. Refused is counted there.
        let _ = events::get().send_ipi(cpu, Ipi::Call);
    }

    fn ring_many(&self, cpus: &[CpuId]) {
        // As above, for each.
        events::get().send_ipis(cpus, Ipi::Call);
    }

    // A call has no kinds, and its way is short.
    #[inline(never)]
    fn handle(&self, masked: &Masked, kinds: Kinds) {
        if kinds.contains(Kind::Alive) {
            bind::took_ipi(masked);
        }
        if kinds.contains(Kind::Rendezvous) {
            trace::kicked(masked);
            laggards::was_asked(masked);
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

/// Has those that run user mode look at their run queues, as far as can be seen from here; how many. Context: vcpu 0.
pub(crate) fn reschedule_who_runs_user_mode() -> usize {
    reschedule_others(|cpu| state_racy(cpu) == State::User)
}

/// Has all that are up look at their run queues. Context: vcpu 0.
pub(crate) fn reschedule_all_others() {
    reschedule_others(|_| true);
}

fn reschedule_others(is_meant: impl Fn(CpuId) -> bool) -> usize {
    let others: CpuSet = up_others().filter(|cpu| is_meant(*cpu)).collect();
    mail().post_all(&others, Kind::Reschedule);
    others.len()
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
    trace::aside(|| as_leader(|lead| get().rendezvous.run(&percpu::mask_upcalls(), lead, work)))
}

/// The same for the suspend that is under way, in whose trace it is.
///
/// # Errors
/// As for [`rendezvous`].
#[expect(clippy::result_large_err, reason = "as in `rendezvous`")]
pub(crate) fn rendezvous_of_suspend<T>(work: impl FnOnce(&Quiesced, &Masked) -> (Outcome, T)) -> Result<T, Missing> {
    let masked = percpu::mask_upcalls();
    trace::gather(&masked);
    as_leader(|lead| get().rendezvous.run(&masked, lead, work))
}

/// Has `run` hold a rendezvous, and counts what became of it. Who does not come is named. Context: a task on vcpu 0.
#[expect(clippy::result_large_err, reason = "as in `rendezvous`")]
fn as_leader<T>(
    run: impl FnOnce(&Lead<'_, Deliver, gate::Gate, GuestClock>) -> Result<T, Missing>,
) -> Result<T, Missing> {
    let begun_ns = time::now_ns();
    let overdue = |missing: &Missing| {
        let down = missing.awaited == Awaited::GoingDown;
        let mut line = Line::new(if down { "hotplug-overdue" } else { "rendezvous-overdue" });
        line.field("missing", &missing.cpus);
        line.field("after_ns", &time::now_ns().saturating_sub(begun_ns));
        line.field("states", &Laggards(missing));
        console::print(&line);
    };
    let lead = Lead { mail: mail(), gate: &gate::Gate, clock: &GuestClock, limits: LIMITS, overdue: &overdue };
    laggards::begin();
    let result = run(&lead);
    // ORDERING: Relaxed, a count.
    if result.is_ok() { &HELD } else { &GIVEN_UP }.fetch_add(1, Ordering::Relaxed);
    result
}

static HELD: AtomicU64 = AtomicU64::new(0);
static GIVEN_UP: AtomicU64 = AtomicU64::new(0);

/// How many rendezvous there have been, and how many for which some vcpus did not come. Context: any.
pub(crate) fn rendezvous_racy() -> (u64, u64) {
    // ORDERING: Relaxed, counts.
    (HELD.load(Ordering::Relaxed), GIVEN_UP.load(Ordering::Relaxed))
}

/// Makes the port of the gate in a life of the domain that has just begun. Context: vcpu 0, quiesced, events attached. One hypercall.
pub(crate) fn make_gate(_others: &Quiesced) {
    gate::make_anew();
}

/// Whether `nr` is what those poll who wait in a rendezvous. Context: vcpu 0.
pub(crate) fn is_gate(nr: PortNr) -> bool {
    gate::port() == Some(nr)
}

/// Has an event strike a wait of vcpu 0's where it is hardest to see. Context: vcpu 0, no rendezvous on.
///
/// # Errors
/// Why there was no such wait.
pub(crate) fn doze_struck_before_the_call() -> Result<(), &'static str> {
    gate::doze_struck_before_the_call(&percpu::mask_upcalls())
}

/// Whether every other vcpu has left the last rendezvous. Context: vcpu 0.
pub(crate) fn all_have_left() -> bool {
    get().rendezvous.all_have_left()
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
    User,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Starting => "starting",
            State::Task => "task",
            State::Idle => "idle",
            State::Parked => "parked",
            State::Down => "down",
            State::User => "user",
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

/// This CPU is about to enter user mode.
pub(crate) fn note_user() {
    note(State::User);
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
        5 => State::User,
        _ => State::Starting,
    }
}

//! The follower's side of a rendezvous: when a CPU parks, and how it comes back.

use percpu::CpuId;
use smp::trace::Mark;

use super::gate::Gate;
use super::{Placed, State, bind, get, note};
use crate::trace;

/// Whether this CPU is to park.
pub(crate) fn park_is_asked() -> bool {
    percpu::current() != CpuId::BOOT && get().rendezvous.is_requested()
}

/// What the executor does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum AfterPark {
    /// Goes on: there was no rendezvous.
    NotAsked,
    /// Goes on, after one.
    Back,
    /// Calls [`leave`](super::leave), when it holds no task.
    Leave,
}

/// Parks, if a rendezvous is on, until it is over, and restores this CPU by its outcome. Context: the executor, between tasks.
#[inline]
pub(crate) fn park_if_asked() -> AfterPark {
    if park_is_asked() { park() } else { AfterPark::NotAsked }
}

#[cold]
fn park() -> AfterPark {
    let masked = percpu::mask_upcalls();
    note(State::Parked);
    trace::parked(&masked);
    // From before a suspend can strike until this CPU has its own vcpu_info again.
    percpu::area().set_parked(true);
    let parked = get().rendezvous.park(&masked, &Gate, &get().mail);
    trace::mark(&masked, Mark::Released);
    bind::restore_this_cpu(&masked, parked.outcome(), Placed::No);
    bind::take_what_came(&masked);
    percpu::area().set_parked(false);
    drop(parked);
    if get().hotplug.is_leaving() { AfterPark::Leave } else { AfterPark::Back }
}

//! The follower's side of a rendezvous: when a CPU parks, and how it comes back.

use percpu::CpuId;
use smp::Outcome;
use smp::trace::Mark;

use super::gate::Gate;
use super::{State, bind, get, note};
use crate::{trace, vector};

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
    let vectors = vector::Saved::of_this_cpu();
    // SAFETY: this CPU is lost only if `take_others_down` has taken it down, which asks for `Quiesced`: so it was in the loop of the
    //   rendezvous over one word and hypercalls, or in an upcall that is sent back, which own nothing, lend nothing, and may be begun again
    //   (RV3). They do not unwind. It is started with upcalls masked: Xen masks a `vcpu_info` that is placed, or copies the mask from a legacy
    //   slot, which `TakeOver::MaskLegacySlots` has masked.
    let parked = unsafe { get().away.restartable(|| get().rendezvous.park(&masked, &Gate, &get().mail)) };
    // A doze in which it was taken down never cleared this.
    percpu::area().set_dozing(false);
    trace::mark(&masked, Mark::Released);
    if parked.outcome() == Outcome::Resumed {
        vectors.restore_in_new_domain();
    }
    bind::restore_this_cpu(&masked, parked.outcome());
    bind::take_what_came(&masked);
    drop(parked);
    if get().hotplug.is_leaving() { AfterPark::Leave } else { AfterPark::Back }
}

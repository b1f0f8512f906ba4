//! [`Laggards`]: the vcpus that did not come to a rendezvous, and the last that is known of each, for people.
//!
//! | what | from |
//! |---|---|
//! | task, idle, parked | what its executor said last |
//! | running, runnable, blocked, and for how long | Xen, by a hypercall |
//! | where it was | the rip that its last upcall interrupted |
//! | whether it was heard of since it was asked | the IPI of this rendezvous, taken or not: one that took it is in a task that does not end; one that did not has its upcalls masked, or is not given a processor |
//!
//! Suspend: *kept*. Turned down: an NMI to a vcpu that takes no upcalls (`VCPUOP_send_nmi`), which would tell where it is, but needs an
//! entry that may strike between any two instructions, the way out of an upcall included.

use core::fmt;

use percpu::{Area, CpuId, Masked};
use smp::Missing;
use spin::Once;
use xen_sys::abi::vcpu::{RUNSTATE_blocked, RUNSTATE_offline, RUNSTATE_runnable, RUNSTATE_running};
use xen_sys::hypercall::vcpu;
use xen_sys::primitive::sync::atomic::{AtomicU64, Ordering};

use super::{get, state_racy};
use crate::time;

/// Guest time at which the last rendezvous began.
static BEGAN_NS: AtomicU64 = AtomicU64::new(0);

/// What others may know of a CPU. Written by that CPU.
pub(super) struct LastSeen {
    area: Once<&'static Area>,
    /// Guest time at which it last took a rendezvous' IPI.
    asked_ns: AtomicU64,
}

impl LastSeen {
    pub(super) fn new() -> LastSeen {
        LastSeen { area: Once::new(), asked_ns: AtomicU64::new(0) }
    }
}

/// This CPU lets others see where it is. Bring-up.
pub(super) fn show_area() {
    get().last_seen.mine().area.call_once(percpu::area);
}

/// A rendezvous begins. Context: vcpu 0.
pub(super) fn begin() {
    BEGAN_NS.store(time::now_ns(), Ordering::Relaxed); // ORDERING: Relaxed, shown to people.
}

/// The IPI of a rendezvous came. Context: upcall.
pub(super) fn was_asked(_masked: &Masked) {
    // ORDERING: Relaxed, shown to people.
    get().last_seen.mine().asked_ns.store(time::now_ns(), Ordering::Relaxed);
}

/// What Xen does with a vcpu right now. Costs a hypercall; any context.
struct Scheduled(Option<(u32, u64)>);

impl Scheduled {
    fn of(cpu: CpuId) -> Scheduled {
        Scheduled(vcpu::get_runstate_info(cpu.vcpu()).ok().map(|info| (info.state, info.state_entry_time)))
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
        let Some((state, since_ns)) = self.0 else { return f.write_str("unknown") };
        let name = names.iter().find(|(known, _)| *known == state).map_or("unknown", |(_, name)| *name);
        write!(f, "{name} for {} ms", time::system_ns().saturating_sub(since_ns) / 1_000_000)
    }
}

/// What one that did not come was last seen doing.
struct Seen(CpuId);

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpu = self.0;
        write!(f, "vcpu {cpu}: {} {}", state_racy(cpu), Scheduled::of(cpu))?;
        let seen = get().last_seen.on(cpu);
        // ORDERING: Relaxed all, shown to people.
        if let Some(area) = seen.area.get() {
            write!(f, " at {:#x}", area.upcall_rip.load(Ordering::Relaxed))?;
        }
        let heard = seen.asked_ns.load(Ordering::Relaxed) >= BEGAN_NS.load(Ordering::Relaxed);
        f.write_str(if heard { " asked" } else { " takes no events" })
    }
}

/// Those that did not come, with the last that is known of each.
pub(crate) struct Laggards<'a>(pub(crate) &'a Missing);

/// Each takes a hypercall and a hundred characters, and the line has an end.
const SHOWN: usize = 8;

impl fmt::Display for Laggards<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, cpu) in self.0.cpus.iter().take(SHOWN).enumerate() {
            let separator = if n == 0 { "" } else { ", " };
            write!(f, "{separator}{}", Seen(cpu))?;
        }
        match self.0.cpus.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, ", and {more} more"),
        }
    }
}

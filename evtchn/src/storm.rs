//! Ports that fire too often: no port keeps a CPU from its other ports, its timer or its tasks.
//!
//! Two means, for two kinds of port ([`EndOfEvent`](crate::EndOfEvent)):
//! - *late*: the port is masked before its handler runs, and unmasked when its owner has done what the event asked for. Who
//!   sends for nothing is answered later and later ([`end_of_event`](Events::end_of_event)). For peers in other domains.
//! - *at once*: a port may fire [`BURST`] times in one turn of its CPU's executor; then it is *muted*, that is masked, until
//!   the next turn ([`end_turn`](Events::end_turn)). Handlers only wake tasks, so within one turn no event after the first
//!   asks for anything new; in the meantime a task and the expired timers have had their turn.
//!
//! Masked, an event stays PENDING, so nothing is lost either way. Virqs and ipis are not counted: they come from Xen and
//! from our own CPUs, which send one only for an inbox that was empty.
//!
//! Cost where nothing storms: a count in the action's own line for each event; for each turn of the executor a load and
//! a store in a line of this CPU's own.
#![forbid(unsafe_code)]

use percpu::{Masked, current};
use xen_sys::abi::xen::VcpuInfo;
use xen_sys::primitive::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::action::{Action, NO_TURN};
use crate::events::{CpuEvents, Events};
use crate::hypervisor::Hypervisor;
use crate::passage::TaskInside;
use crate::port::PortNr;

/// Events of one port that its CPU handles in one turn of its executor.
pub const BURST: u32 = 32;

/// Events for nothing that are let pass before the next is put off.
const FRUITLESS_FREE: u32 = 2;
/// How long the first that is not is put off; each further one twice as long.
const DELAY_NS: u64 = 1_000_000;
/// And never longer than this.
const MAX_DELAY_NS: u64 = 1_000_000_000;

/// One CPU's part. Written by that CPU. Suspend: *kept*; muted ports of an earlier life are gone, and found by nobody.
pub(crate) struct Turns {
    turn: AtomicU32,
    any_muted: AtomicBool,
}

impl Turns {
    pub(crate) fn new() -> Turns {
        Turns { turn: AtomicU32::new(NO_TURN + 1), any_muted: AtomicBool::new(false) }
    }
}

impl<H: Hypervisor> Events<H> {
    /// One more event of a port whose events end at once: it is muted if it is the last that is let in in this turn.
    #[inline]
    pub(crate) fn count_turn(&self, masked: &Masked, cpu: &CpuEvents, nr: PortNr, action: &Action) {
        let before = action.note_event();
        // ORDERING: Relaxed, this CPU's own.
        if action.is_last_in(cpu.turns.turn.load(Ordering::Relaxed), BURST, before) {
            self.mute(masked, cpu, nr, action);
        }
    }

    #[cold]
    fn mute(&self, masked: &Masked, cpu: &CpuEvents, nr: PortNr, action: &Action) {
        self.abi.mask_port(nr);
        action.set_muted(true);
        // ORDERING: Relaxed, this CPU's own.
        cpu.turns.any_muted.store(true, Ordering::Relaxed);
        cpu.counters.muted.bump_masked(masked);
    }

    /// This CPU's executor has had its turn: what was muted since the last one is unmuted. `flags` is this CPU's registered
    /// `vcpu_info`. Context: task, on each CPU, after tasks and timers have had their chance.
    ///
    /// Costs a load and a store where nothing was muted. Otherwise it looks at every slot of the port table, and with the FIFO ABI
    /// there is a hypercall for each port that has fired meanwhile.
    #[inline]
    pub fn end_turn(&self, flags: &VcpuInfo) {
        let cpu = self.cpus.mine();
        // ORDERING: Relaxed all, this CPU's own.
        cpu.turns.turn.store(cpu.turns.turn.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        if cpu.turns.any_muted.load(Ordering::Relaxed) {
            self.unmute(cpu, flags);
        }
    }

    #[cold]
    fn unmute(&self, cpu: &CpuEvents, flags: &VcpuInfo) {
        let section = TaskInside::enter(|| &cpu.passage);
        // ORDERING: Relaxed, this CPU's own.
        cpu.turns.any_muted.store(false, Ordering::Relaxed);
        for nr in self.devices.reached() {
            let Some(found) = self.devices.lookup(nr, &section.inside) else { continue };
            if found.action.is_muted() && !found.is_moving() && found.action.is_on_racy(cpu.id) {
                found.action.set_muted(false);
                self.unmask_own_nr(&section.masked, flags, nr);
            }
        }
    }

    /// Whether a port of this CPU's is muted, so that its executor must have another turn before it blocks.
    pub fn is_any_muted(&self, _masked: &Masked) -> bool {
        // ORDERING: Relaxed, this CPU's own.
        self.cpus.mine().turns.any_muted.load(Ordering::Relaxed)
    }

    /// What an event of a [late](crate::EndOfEvent::Late) port asked for has been done: the next may come. `flags` is this CPU's
    /// registered `vcpu_info`. Context: task or upcall, on any CPU; on the port's own it costs no hypercall unless one waits
    /// (FIFO ABI).
    ///
    /// Call it after [`end_delay_ns`], and after the device was told that it may send again, if it has to be.
    pub fn end_of_event(&self, action: &Action, flags: &VcpuInfo) {
        let section = TaskInside::enter(|| &self.cpus.mine().passage);
        action.end_event();
        let Some(port) = action.port().filter(|port| port.incarnation == self.incarnation()) else { return };
        let Some(found) = self.devices.lookup(port.nr, &section.inside) else { return };
        // Being moved, it is unmasked at the end of that.
        if found.is_moving() || !core::ptr::eq(found.action, action) {
            return;
        }
        if action.is_on_racy(current()) {
            self.unmask_own_nr(&section.masked, flags, port.nr);
        } else {
            self.unmask_by_xen(port.nr);
        }
    }
}

/// How long the end of an event is to be put off. `fruitful`: something was found to be done. Peers may send for nothing now and
/// then; who does so again and again waits 1 ms, 2, 4 and so on, up to a second. The owner of the action asks once for
/// each event.
pub fn end_delay_ns(action: &Action, fruitful: bool) -> u64 {
    let fruitless = action.note_end(fruitful);
    match fruitless.checked_sub(FRUITLESS_FREE + 1) {
        None => 0,
        Some(doublings) => DELAY_NS.checked_shl(doublings).unwrap_or(MAX_DELAY_NS).clamp(DELAY_NS, MAX_DELAY_NS),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::action::EndOfEvent;

    #[test]
    fn who_sends_for_nothing_waits_longer_and_longer() {
        let action = Action::new(EndOfEvent::Late, 0, |_, _| {});
        let delays = |fruitful: &[bool]| fruitful.iter().map(|good| end_delay_ns(&action, *good)).collect::<Vec<_>>();
        assert_eq!(delays(&[false; 5]), [0, 0, 1_000_000, 2_000_000, 4_000_000]);
        assert_eq!(delays(&[true, false, false, false]), [0, 0, 0, 1_000_000]);
        assert_eq!(delays(&[false; 100]).last(), Some(&MAX_DELAY_NS));
    }
}

//! The end of a connection, the gate before a suspend, and the way back: the rare half of the engine.
//!
//! Plain data under the store's lock, as the rest of the engine; the module's head has the table of phases. Turned down: a
//! gate of its own beside the engine. It would have to ask the engine at every step whether it is empty, and the
//! engine to ask the gate whether it may send.

use super::{Effects, Engine, Phase};
use crate::assemble::{Assembler, Outgoing};
use crate::calls::Request;
use crate::error::{Cause, RingFault};
use crate::ring::Ring;
use crate::wire::Kind;
use alloc::vec::Vec;
use core::task::{Poll, Waker};
use xen_sys::hypercall::sched::SuspendOutcome;

impl Engine {
    /// The connection is of no use any more; everybody who waits is told.
    pub(super) fn break_down(&mut self, fault: RingFault, fx: &mut Effects) {
        self.fault = Some(fault);
        self.counters.faults += 1;
        self.end_connection();
        let cause = Cause::RingBroken(fault);
        self.watches.fail_all(cause, &mut fx.wake);
        self.calls.end_where(|_| Some(Err(cause)), &mut fx.wake);
        self.settle(true, fx);
    }

    /// Forgets all that belonged to one connection, except watches and the requests that somebody waits for.
    fn end_connection(&mut self) {
        self.epoch += 1;
        self.transactions = 0;
        self.next_transaction = None;
        self.incoming = Assembler::default();
        self.outgoing = Outgoing::default();
        self.calls.lose_transactions();
        self.calls.forget_late();
    }

    /// Ends draining once there is nothing left to drain.
    pub(super) fn settle(&mut self, drained: bool, fx: &mut Effects) {
        if self.phase == Phase::Draining && drained {
            self.phase = Phase::Quiet;
            fx.wake.extend(self.quiescer.take());
        }
    }

    /// Closes the gate. False if it is closed already.
    pub(crate) fn begin_quiesce(&mut self, fx: &mut Effects) -> bool {
        if self.phase != Phase::Run {
            return false;
        }
        self.phase = Phase::Draining;
        fx.pump = true;
        true
    }

    pub(crate) fn poll_quiet(&mut self, waker: &Waker, fx: &mut Effects) -> Poll<()> {
        if self.phase == Phase::Quiet {
            fx.drop.extend(self.quiescer.take());
            return Poll::Ready(());
        }
        fx.drop.extend(self.quiescer.replace(waker.clone()));
        Poll::Pending
    }

    /// Opens the gate, also before it was quite closed.
    pub(crate) fn resume(&mut self, outcome: SuspendOutcome, ring: Ring<'_>, fx: &mut Effects) {
        self.phase = Phase::Run;
        fx.drop.extend(self.quiescer.take());
        fx.pump = true;
        if outcome == SuspendOutcome::Resumed {
            self.end_connection();
            self.fault = None;
            self.old_error = ring.error();
            self.watches.lose_all();
            // The watch went with the old domain, as was asked; a transaction went too, which was not.
            let verdict = |request: &Request| match request.kind {
                Kind::Unwatch => Some(Ok(Vec::new())),
                _ if request.tx_id != 0 => Some(Err(Cause::Lost)),
                _ => None,
            };
            self.calls.end_where(verdict, &mut fx.wake);
            // While xenstored resets the ring, its indices are xenstored's; it leaves no replies behind.
            if ring.is_connected()
                && let Err(fault) = ring.discard_replies()
            {
                self.break_down(fault, fx);
            }
        } else if let Some(fault) = self.fault {
            // Requests that came while the gate was closed have waited for a restore that did not come.
            let cause = Cause::RingBroken(fault);
            self.watches.fail_all(cause, &mut fx.wake);
            self.calls.end_where(|_| Some(Err(cause)), &mut fx.wake);
        }
    }
}

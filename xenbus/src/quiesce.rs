//! Quiet for the suspend, and the way back.
//!
//! Runs in tasks. A restore takes the connection, its transactions and its watches; so at the suspend there must be no
//! request without its reply, no open transaction and no message cut in two. Requests made meanwhile wait, and go on
//! afterwards as if nothing had been. Turned down: failing them with "suspended". Every caller would have to
//! try again, and most would do so wrongly.
//!
//! After `Resumed`: indices are read anew (they always are), every watch is asked for again with its token, and says
//! "everything"; only when all of them are answered do the waiting requests go. After `Continued` nothing is to be done.
//! The port must be bound again before the gate is opened.

use crate::store::Store;
use core::future::poll_fn;
use xen_sys::hypercall::sched::SuspendOutcome;

/// Somebody else is quiescing the store, or has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlreadyQuiescing;

impl core::fmt::Display for AlreadyQuiescing {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("xenstore is being quiesced already")
    }
}

impl core::error::Error for AlreadyQuiescing {}

/// Proof that the store is quiet. Dropped, the store goes on as after `Continued`.
#[derive(Debug)]
#[must_use]
pub struct Quiet<'a> {
    store: &'a Store,
    /// What the drop says to the store.
    outcome: SuspendOutcome,
}

impl Store {
    /// Lets no new request out, and waits until those on their way and the open transactions have ended.
    ///
    /// Waits for ever if xenstored does not answer; so wait with a deadline. Dropped before it is done, it opens the gate
    /// again. A broken ring counts as quiet: it must not stand in the way of a suspend, which may mend it.
    /// # Errors
    /// [`AlreadyQuiescing`].
    pub async fn quiesce(&self) -> Result<Quiet<'_>, AlreadyQuiescing> {
        if !self.with(|engine, fx| engine.begin_quiesce(fx)) {
            return Err(AlreadyQuiescing);
        }
        let quiet = Quiet { store: self, outcome: SuspendOutcome::Continued };
        poll_fn(|cx| self.with(|engine, fx| engine.poll_quiet(cx.waker(), fx))).await;
        Ok(quiet)
    }
}

impl Quiet<'_> {
    /// Lets requests out again. Context: task; the page is mapped and, after `Resumed`, the new port bound.
    pub fn resume(mut self, outcome: SuspendOutcome) {
        self.outcome = outcome;
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        self.store.with(|engine, fx| engine.resume(self.outcome, self.store.ring(), fx));
    }
}

//! Quiet for the suspend, and the way back.
//!
//! Runs in tasks. A restore takes the connection, its transactions and its watches; so at the suspend nobody may wait for
//! a reply or work in a transaction, and no message may be cut in two. Requests made meanwhile wait, and go on
//! afterwards as if nothing had been. Turned down: failing them with "suspended". Every caller would have to
//! try again, and most would do so wrongly.
//!
//! A request that nobody waits for any more is not waited for here either: its reply may never come, and one that comes
//! at the wrong time is no worse than a watch event, which may always do that. After `Continued` it is still known.
//!
//! After `Resumed`: indices are read anew (they always are), every watch is asked for again with its token, and says
//! "everything"; behind them, in xenstored's order, go the waiting requests. After `Continued` nothing is to be done.
//!
//! What a suspend needs of its kernel, beside the proof:
//!
//! - QU1: at the hypercall no poll of [`Store::pump`] is under way. It may be polled while the store is quiet, and then
//!   takes what xenstored says; struck between its load of `rsp_cons` and its store, it would after the restore put
//!   the old domain's index over one that xenstored has reset. A kernel whose vcpus are parked between two polls, and not
//!   inside one, holds this.
//! - QU2: from QU1 on and until [`Quiet`] ends, the kernel may write to the page what stands there, to have it copied.
//! - QU3: the page is mapped before [`Quiet`] ends. The port may be bound later; xenstored is then to be rung, and
//!   [`Store::on_event`] called, once it is.

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
    /// Lets no new request out, and waits until the open transactions have ended, and those requests on their way that
    /// somebody waits for.
    ///
    /// Waits as long as they do; so wait with a deadline, here and there. Dropped before it is done, it opens the gate
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
    /// Lets requests out again. Context: task; the page is mapped (QU3).
    pub fn resume(mut self, outcome: SuspendOutcome) {
        self.outcome = outcome;
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        self.store.with(|engine, fx| engine.resume(self.outcome, self.store.ring(), fx));
    }
}

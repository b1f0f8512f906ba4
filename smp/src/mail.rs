//! [`Mail`]: an inbox for each CPU and the bell that goes with it. What the other files of this crate send, they
//! send through here, and the IPI upcall of each CPU ends in [`Mail::serve`].
//!
//! Posting: any CPU, any context, no lock, no allocation; at most one hypercall. Serving: the owner, upcalls masked.

use core::ptr::NonNull;

use percpu::{CpuId, Masked, PerCpu, current, mask_upcalls};

use crate::call::{Busy, CallNode, Pending};
use crate::inbox::{Inbox, Kind, Kinds, Posted};
use crate::relax::{Backoff, Patience, Relax};

/// What the mail asks of the kernel.
pub trait Delivery {
    /// Sends the IPI port of `cpu`. Where `cpu` has no port at the moment, as it has not bound its own yet after a
    /// restore, nothing is to be done: it serves its inbox once it has one. Context: any.
    fn ring(&self, cpu: CpuId);

    /// Does what this CPU was asked for. Context: as [`Mail::serve`].
    fn handle(&self, masked: &Masked, kinds: Kinds);
}

/// The inboxes of all CPUs.
pub struct Mail<D> {
    inboxes: PerCpu<Inbox>,
    delivery: D,
}

impl<D: Delivery> Mail<D> {
    /// Empty inboxes for the first `nr` CPUs.
    pub fn new(nr: usize, delivery: D) -> Mail<D> {
        Mail { inboxes: PerCpu::new(nr, |_| Inbox::new()), delivery }
    }

    /// What rings and handles.
    pub fn delivery(&self) -> &D {
        &self.delivery
    }

    /// How many CPUs have an inbox.
    pub fn nr(&self) -> usize {
        self.inboxes.nr()
    }

    /// Asks `cpu` for `kind`. This CPU may be asked too.
    pub fn post(&self, cpu: CpuId, kind: Kind) {
        let posted = self.inboxes.on(cpu).post(kind);
        self.ring_if_first(cpu, posted);
    }

    /// Has `cpu` run `work(argument)` in its upcall. Does not wait.
    ///
    /// # Errors
    /// [`Busy`] if the node's last call is not over, or its end has not been seen yet.
    pub fn call(
        &self,
        cpu: CpuId,
        node: &'static CallNode,
        work: fn(&Masked, usize),
        argument: usize,
    ) -> Result<Pending, Busy> {
        let pending = node.claim(work, argument)?;
        // SAFETY: valid for ever, and claimed just now.
        let posted = unsafe { self.inboxes.on(cpu).post_node(NonNull::from(node)) };
        self.ring_if_first(cpu, posted);
        Ok(pending)
    }

    /// Runs `work` on `cpu`, in its upcall, and waits for the result. On this CPU: at once.
    /// Context: task, with upcalls unmasked: `cpu` may be waiting for this CPU in the same way. Cost: about two IPIs, if `cpu`
    /// is running.
    pub fn run_on<T, R>(&self, cpu: CpuId, relax: &R, work: impl FnOnce(&Masked) -> T + Send) -> T
    where
        T: Send,
        R: Relax + ?Sized,
    {
        if cpu == current() {
            return work(&mask_upcalls());
        }
        let mut scoped = Scoped { work: Some(work), result: None };
        let node = CallNode::scoped(scoped.entry(), (&raw mut scoped).cast());
        // The node is in the frame that would be unwound.
        let stays = StaysUntilDone;
        // SAFETY: claimed by its making. Valid until it is completed: it is not moved, we leave only once it is done, and
        // `stays` turns a panic of ours into an abort.
        let posted = unsafe { self.inboxes.on(cpu).post_node(NonNull::from(&node)) };
        self.ring_if_first(cpu, posted);
        let mut backoff = Backoff::new(relax, Patience::SHORT);
        while !node.is_done() {
            backoff.step();
        }
        core::mem::forget(stays);
        scoped.result.take().expect("a call that is done has left its result")
    }

    /// Empties this CPU's inbox: does what was asked for, then runs the calls. Context: the IPI upcall; also a CPU that waits
    /// in the rendezvous, and one that has just bound its port anew.
    pub fn serve(&self, masked: &Masked) {
        let taken = self.inboxes.mine().take(masked);
        if !taken.kinds.is_empty() {
            self.delivery.handle(masked, taken.kinds);
        }
        taken.calls.run();
    }

    fn ring_if_first(&self, cpu: CpuId, posted: Posted) {
        match posted {
            Posted::First => self.delivery.ring(cpu),
            Posted::Joined => {}
        }
    }
}

/// Work on its way to another CPU, and its result on the way back; both in the frame of [`Mail::run_on`].
struct Scoped<W, T> {
    work: Option<W>,
    result: Option<T>,
}

impl<T: Send, W: FnOnce(&Masked) -> T + Send> Scoped<W, T> {
    /// The function that runs such work; asked of a value, so that its types need not be named.
    fn entry(&self) -> unsafe fn(&Masked, *mut ()) {
        Self::run
    }

    /// # Safety
    /// `this` points to a `Scoped` of this type that nobody else touches until the call has been completed.
    unsafe fn run(masked: &Masked, this: *mut ()) {
        // SAFETY: of this type, and ours for now, says the caller.
        let this = unsafe { &mut *this.cast::<Self>() };
        this.result = this.work.take().map(|work| work(masked));
    }
}

struct StaysUntilDone;

impl Drop for StaysUntilDone {
    fn drop(&mut self) {
        panic!("unwinding out of a frame that another cpu writes to");
    }
}

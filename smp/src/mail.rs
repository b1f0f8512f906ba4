//! [`Mail`]: an inbox for each CPU and the bell that goes with it. What the other files of this crate send, they
//! send through here, and the IPI upcall of each CPU ends in [`Mail::serve`].
//!
//! Posting: any CPU, any context, no lock, no allocation; at most one hypercall. To many CPUs at once: `broadcast.rs`.
//! Serving: the owner, upcalls masked.

use core::fmt;
use core::ptr::NonNull;

use percpu::{CpuId, Masked, PerCpu, current, mask_upcalls};

use crate::call::{CallNode, NotPosted};
use crate::inbox::{Inbox, Kind, Kinds, Posted, Taken};
use crate::pending::Pending;
use crate::relax::{Backoff, Patience, Relax};
use crate::trace::Mark;

/// What the mail asks of the kernel.
pub trait Delivery {
    /// Sends the IPI port of `cpu`. Where `cpu` has no port at the moment, as it has not bound its own yet after a
    /// restore, nothing is to be done: it serves its inbox once it has one. Context: any.
    fn ring(&self, cpu: CpuId);

    /// [`Delivery::ring`] for each of `cpus`, of which there are 32 at most. Whoever can ring them together does so
    /// here; each is rung, whatever became of the one before.
    fn ring_many(&self, cpus: &[CpuId]) {
        cpus.iter().for_each(|cpu| self.ring(*cpu));
    }

    /// Does what this CPU was asked for. Context: as [`Mail::serve`].
    fn handle(&self, masked: &Masked, kinds: Kinds);

    /// This CPU has reached `mark` in a rendezvous. Context: upcalls masked; takes no lock, calls nobody. Without more,
    /// nobody wants to know.
    fn mark(&self, _masked: &Masked, _mark: Mark) {}
}

/// The CPU that a call was for is down; nothing was run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Down(pub CpuId);

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vcpu {} is down", self.0)
    }
}

impl core::error::Error for Down {}

/// The inboxes of all CPUs.
pub struct Mail<D> {
    pub(crate) inboxes: PerCpu<Inbox>,
    delivery: D,
}

impl<D: Delivery> Mail<D> {
    /// Empty inboxes for the first `nr` CPUs.
    pub fn new(nr: usize, delivery: D) -> Mail<D> {
        Mail { inboxes: PerCpu::new(nr, |_| Inbox::new()), delivery }
    }

    /// Empty inboxes for the first `nr` CPUs, all of them down: each opens its own when it [serves](Mail::serve) it first.
    pub fn of_cpus_down(nr: usize, delivery: D) -> Mail<D> {
        Mail { inboxes: PerCpu::new(nr, |_| Inbox::closed()), delivery }
    }

    /// What rings and handles.
    pub fn delivery(&self) -> &D {
        &self.delivery
    }

    /// Asks `cpu` for `kind`. This CPU may be asked too; one that is down is not rung, and finds it when it is up.
    pub fn post(&self, cpu: CpuId, kind: Kind) {
        let posted = self.inboxes.on(cpu).post(kind);
        self.ring_if_first(cpu, posted);
    }

    /// [`Mail::post`] by who rings for itself: whether `cpu` is to be rung.
    #[must_use = "a CPU that is not rung does not look"]
    pub fn post_unrung(&self, cpu: CpuId, kind: Kind) -> bool {
        self.inboxes.on(cpu).post(kind) == Posted::First
    }

    /// Has `cpu` run `work(argument)` in its upcall. Does not wait.
    ///
    /// # Errors
    /// [`NotPosted::Busy`] if the node's last call is not over, or its end has not been seen yet; [`NotPosted::Down`] if
    /// `cpu` is down.
    pub fn call(
        &self,
        cpu: CpuId,
        node: &'static CallNode,
        work: fn(&Masked, usize),
        argument: usize,
    ) -> Result<Pending, NotPosted> {
        let pending = node.claim(work, argument)?;
        // SAFETY: valid for ever, and claimed just now.
        let posted = unsafe { self.inboxes.on(cpu).post_node(NonNull::from(node)) };
        if posted == Posted::Closed {
            pending.take_back();
            return Err(NotPosted::Down);
        }
        self.ring_if_first(cpu, posted);
        Ok(pending)
    }

    /// Runs `work` on `cpu`, in its upcall, and waits for the result. On this CPU: at once. Context: task, with upcalls
    /// unmasked: `cpu` may be waiting for this CPU in the same way. Cost: about two IPIs, if `cpu` is running.
    ///
    /// # Errors
    /// [`Down`] if `cpu` is.
    pub fn run_on<T, R>(&self, cpu: CpuId, relax: &R, work: impl FnOnce(&Masked) -> T + Send) -> Result<T, Down>
    where
        T: Send,
        R: Relax + ?Sized,
    {
        if cpu == current() {
            return Ok(work(&mask_upcalls()));
        }
        let mut scoped = Scoped { work: Some(work), result: None };
        let node = CallNode::scoped(scoped.entry(), (&raw mut scoped).cast());
        // The node is in the frame that would be unwound.
        let stays = StaysUntilDone;
        // SAFETY: claimed by its making. Valid until it is completed: it is not moved, we leave only once it is done,
        // and `stays` turns a panic of ours into an abort.
        let posted = unsafe { self.inboxes.on(cpu).post_node(NonNull::from(&node)) };
        if posted == Posted::Closed {
            core::mem::forget(stays);
            return Err(Down(cpu));
        }
        self.ring_if_first(cpu, posted);
        let mut backoff = Backoff::new(relax, Patience::SHORT);
        while !node.is_done() {
            backoff.step();
        }
        core::mem::forget(stays);
        Ok(scoped.result.take().expect("a call that is done has left its result"))
    }

    /// Empties this CPU's inbox: does what was asked for, then runs the calls. Context: the IPI upcall; also a CPU that
    /// waits in the rendezvous, and one that has just bound its port anew.
    #[inline]
    pub fn serve(&self, masked: &Masked) {
        self.do_all(masked, self.inboxes.mine().take(masked));
    }

    /// [`Mail::serve`] for the last time before this CPU goes down: a call is run here or refused from now on. Once it is up
    /// again it serves as usual, whether it was rung or not.
    pub fn close(&self, masked: &Masked) {
        self.do_all(masked, self.inboxes.mine().close(masked));
    }

    #[inline]
    fn do_all(&self, masked: &Masked, taken: Taken<'_>) {
        let Taken { kinds, calls } = taken;
        if !kinds.is_empty() {
            self.delivery.handle(masked, kinds);
        }
        drop(calls);
    }

    #[inline]
    fn ring_if_first(&self, cpu: CpuId, posted: Posted) {
        match posted {
            Posted::First => self.delivery.ring(cpu),
            Posted::Joined | Posted::Closed => {}
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

/// Held while other CPUs use what is in our frame.
pub(crate) struct StaysUntilDone;

impl Drop for StaysUntilDone {
    fn drop(&mut self) {
        panic!("unwinding out of a frame that another cpu writes to");
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::RefCell;
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::Relaxed;

    use percpu::hosted;

    use super::*;
    use crate::tests::{Alone, Noted, kernel};

    fn rings(mail: &Mail<Noted>) -> Vec<usize> {
        mail.delivery().rings.lock().expect("no test panics in there").drain(..).map(CpuId::index).collect()
    }

    fn cpu(n: usize) -> CpuId {
        CpuId::new(n).expect("tests use small numbers")
    }

    #[test]
    fn rings_for_an_empty_inbox_only() {
        let (mail, _on) = kernel(3);
        mail.post(cpu(2), Kind::Reschedule);
        mail.post(cpu(2), Kind::Alive);
        mail.post(cpu(0), Kind::Alive);
        assert_eq!(rings(&mail), [2, 0]);
        let _two = hosted::enter(cpu(2));
        mail.serve(&hosted::masked());
        mail.post(cpu(2), Kind::Rendezvous);
        mail.post(cpu(0), Kind::Alive);
        assert_eq!(rings(&mail), [2]);
        mail.serve(&hosted::masked());
        let kinds = mail.delivery().kinds.lock().expect("no test panics in there").clone();
        assert_eq!(
            kinds,
            [[Kind::Reschedule, Kind::Alive].into_iter().collect(), Kinds::from_iter([Kind::Rendezvous])]
        );
    }

    #[test]
    fn who_rings_for_itself_is_told_when_to() {
        let (mail, _on) = kernel(2);
        assert!(mail.post_unrung(cpu(1), Kind::Alive));
        assert!(!mail.post_unrung(cpu(1), Kind::Reschedule), "who was first rings");
        mail.post(cpu(1), Kind::Alive);
        assert!(rings(&mail).is_empty());
        let down = Mail::of_cpus_down(1, Noted::default());
        assert!(!down.post_unrung(CpuId::BOOT, Kind::Alive));
    }

    #[test]
    fn an_empty_inbox_asks_for_nothing() {
        let (mail, _on) = kernel(1);
        mail.serve(&hosted::masked());
        assert!(mail.delivery().kinds.lock().expect("no test panics in there").is_empty());
    }

    std::thread_local! {
        static RAN: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
    }

    fn note(_masked: &Masked, argument: usize) {
        RAN.with_borrow_mut(|ran| ran.push(argument));
    }

    #[test]
    fn calls_run_in_order_and_also_when_they_are_dropped() {
        static NODES: [CallNode; 4] = [const { CallNode::new() }; 4];
        let (mail, _on) = kernel(1);
        for (n, node) in NODES.iter().enumerate() {
            drop(mail.call(CpuId::BOOT, node, note, n).expect("a new node is idle"));
            mail.post(CpuId::BOOT, Kind::Alive);
        }
        assert_eq!(rings(&mail), [0]);
        drop(mail.inboxes.mine().take(&hosted::masked()));
        assert_eq!(RAN.take(), [0, 1, 2, 3]);
    }

    #[test]
    fn a_cpu_that_is_down_takes_no_calls_until_it_serves() {
        static NODE: CallNode = CallNode::new();
        let mail = Mail::of_cpus_down(2, Noted::default());
        let _on = hosted::enter(CpuId::BOOT);
        for down in 0..2 {
            assert_eq!(mail.call(cpu(1), &NODE, note, 7).err(), Some(NotPosted::Down), "each time the node is idle");
            assert_eq!(mail.run_on(cpu(1), &Alone, |_| ()), Err(Down(cpu(1))));
            mail.post(cpu(1), Kind::Reschedule);
            assert!(rings(&mail).is_empty());
            let _one = hosted::enter(cpu(1));
            mail.serve(&hosted::masked());
            assert_eq!(mail.delivery().kinds.lock().expect("no test panics in there").len(), down + 1);
            drop(mail.call(cpu(1), &NODE, note, down).expect("it is up"));
            assert_eq!(rings(&mail), [1]);
            mail.close(&hosted::masked());
        }
        assert_eq!(RAN.take(), [0, 1]);
    }

    #[test]
    fn here_it_runs_at_once_and_masked() {
        let (mail, _on) = kernel(1);
        assert_eq!(mail.run_on(CpuId::BOOT, &Alone, |_| hosted::upcalls_masked()), Ok(true));
        assert!(!hosted::upcalls_masked());
        assert!(rings(&mail).is_empty());
    }

    #[test]
    fn elsewhere_it_runs_there_and_may_borrow() {
        let (mail, _on) = kernel(2);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _on = hosted::enter(cpu(1));
                while !over.load(Relaxed) {
                    mail.serve(&hosted::masked());
                    std::thread::yield_now();
                }
            });
            let mut sum = 0;
            for n in 0..3 {
                let ran_on = mail.run_on(cpu(1), &Alone, |_| {
                    sum += n;
                    current()
                });
                assert_eq!(ran_on, Ok(cpu(1)));
            }
            over.store(true, Relaxed);
            assert_eq!(sum, 3);
        });
    }
}

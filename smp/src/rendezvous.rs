//! [`Rendezvous`]: every other vcpu waits, and runs no handler, while vCPU 0 works. Suspend happens in there.
//!
//! | phase | leader (vCPU 0) | follower, in [`Rendezvous::park`] |
//! |---|---|---|
//! | `Run` or `Released` | waits until all are out of the last one | runs |
//! | `Quiesce` | rings every CPU, dozes until all have `Arrived`, serving its inbox | serves its inbox, acknowledges, dozes |
//! | `Stopped` | looks whether all are `Arrived` still, then does the work | sleeps on |
//! | `Released` | opens the gate, runs | restores what it must, then says `Out` |
//!
//! A task that waits for a call on another CPU cannot park before the call has been done, so CPUs that have arrived go
//! on serving calls until the last has arrived; then nobody can be waiting for anybody. A follower that serves says
//! `Serving` first and then looks at the phase again; the leader says `Stopped` first and then looks at the
//! acknowledgements again. So one of them sees the other, and the many that sleep are not woken to say that they have
//! stopped: each of them is scheduled twice in a rendezvous, to come and to leave.
//!
//! Nobody parks inside an upcall. The IPI only gets a CPU out of sleep or user mode; its executor asks
//! [`is_requested`](Rendezvous::is_requested) between polls and parks there, so no task is ever stopped half way
//! through an update of page tables, and no kernel code can hold an mfn across a suspend.
//!
//! **The leader may take a follower down at any instruction of its wait**, and does so for a suspend: what is down has no context that
//! the toolstack would save, send and set. In the same domain it is brought up and runs on where it was. In a new one nothing is
//! left of it but its memory: it is started, maybe before the release, and calls [`park`](Rendezvous::park) again. So while its acknowledgement
//! stands and the phase is not `Quiesce`, a follower reads one word, waits at the [`Gate`] or yields, and does nothing else that would be
//! missed, or done twice; and `park` goes on from the acknowledgement that it finds.
//!
//! Who writes: the phase word only the leader, each acknowledgement only its CPU (vCPU 0 for one that is down), the
//! count of arrivals each CPU once. Suspend: *kept*. Blocking, with a limit before the work. Turned down: stopping in the
//! upcall (Xen's `stop_machine` may, as it has no page-table update that an upcall can interrupt); a counter in place of
//! the acknowledgements (it cannot tell who is missing); a second acknowledgement for `Stopped`, which has each CPU
//! scheduled once more; what else was tried is in `docs/decisions/0005-rendezvous-waits.md`.
//!
//! Weakening any ordering below fails in `tests/loom_rendezvous.rs`.

use crossbeam_utils::CachePadded;
use percpu::{CpuId, CpuSet, Masked, PerCpu, Quiesced, current};
use xen_sys::primitive::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use xen_sys::primitive::sync::atomic::fence;

use crate::arrivals::Arrivals;
use crate::inbox::Kind;
use crate::mail::{Delivery, Mail};
use crate::missing::{Awaited, Missing};
use crate::phase::{Ack, AtomicAck, AtomicPhase, Outcome, Phase};
use crate::relax::{Backoff, Clock, Gate, Patience};
use crate::trace::Mark;
use crate::watch::{Limits, Look, Watch};

/// The state of all rendezvous of this kernel.
///
/// - RV1: every vcpu but vCPU 0 that executes kernel code has an acknowledgement other than `Offline`: it is admitted
///   before it is started and dismissed after it has gone down.
/// - RV2: the phase word is written by vCPU 0 only, inside [`Rendezvous::run`].
/// - RV3: a follower whose acknowledgement is `Arrived` does nothing but wait and look at the phase word, until that is
///   `Quiesce`, and then only after it has said `Serving`; or until it is `Released`.
pub struct Rendezvous {
    phase: CachePadded<AtomicPhase>,
    arrivals: CachePadded<Arrivals>,
    acks: PerCpu<AtomicAck>,
    patience: Patience,
}

/// What the leader works with.
pub struct Lead<'a, D, G: ?Sized, C: ?Sized> {
    /// Through which the others are called.
    pub mail: &'a Mail<D>,
    /// Where all wait.
    pub gate: &'a G,
    /// Measures the limit.
    pub clock: &'a C,
    /// How long to wait for everybody.
    pub limits: Limits,
    /// Told once who is missing, at [`Limits::overdue_ns`]. Context of the call: the leader's, masked, others parked; it must
    /// wait for nobody.
    pub overdue: &'a dyn Fn(&Missing),
}

impl Rendezvous {
    /// For the first `nr` CPUs, all but vCPU 0 down.
    pub fn new(nr: usize, patience: Patience) -> Rendezvous {
        Rendezvous {
            phase: CachePadded::new(AtomicPhase::new(Phase::Run)),
            arrivals: CachePadded::new(Arrivals::new()),
            acks: PerCpu::new(nr, |_| AtomicAck::new(Ack::Offline)),
            patience,
        }
    }

    /// From now on `cpu` is waited for. On vCPU 0, before `VCPUOP_up` (RV1).
    pub fn admit(&self, cpu: CpuId) {
        // ORDERING: Relaxed: read by vCPU 0, which is us, and by `cpu` itself once Xen has started it.
        self.acks.on(cpu).store(Ack::Out, Relaxed);
    }

    /// `cpu` is not waited for any more. On vCPU 0.
    ///
    /// # Safety
    /// `cpu` is down: it has gone down, or was never started (RV1).
    pub unsafe fn dismiss(&self, cpu: CpuId) {
        // ORDERING: Relaxed, as in `admit`.
        self.acks.on(cpu).store(Ack::Offline, Relaxed);
    }

    /// Gathers all other vCPUs, does `work` while they are stopped, and releases them with the outcome that it returns.
    ///
    /// Context: vCPU 0, in a task. The other vCPUs' tasks that wait for a call on this one are served. `work` must take
    /// no lock, allocate nothing and log nothing.
    ///
    /// Cost here, for n others: n/32 hypercalls that ring them, one that opens the gate (and in each life one that makes it), one for each time that this
    /// vcpu dozes: once, or more often where events come for it. Lines: each acknowledgement is read twice after it has
    /// been written, the phase is written three times.
    ///
    /// # Errors
    /// [`Missing`] when the limit is over before `work` was begun; all is as before then.
    ///
    /// # Panics
    /// On another CPU, or from inside `work`: a bug of ours.
    #[expect(clippy::result_large_err, reason = "a set of 1024 CPUs; boxing it would allocate while others are parked")]
    pub fn run<T, D, G, C>(
        &self,
        masked: &Masked,
        lead: &Lead<'_, D, G, C>,
        work: impl FnOnce(&Quiesced, &Masked) -> (Outcome, T),
    ) -> Result<T, Missing>
    where
        D: Delivery,
        G: Gate + ?Sized,
        C: Clock + ?Sized,
    {
        assert_eq!(current(), CpuId::BOOT, "only vCPU 0 leads a rendezvous");
        assert!(!self.is_requested(), "a rendezvous inside a rendezvous");
        let mut watch = Watch::new(lead.clock, lead.limits, lead.overdue);

        // A follower that still holds an outcome has to act on it before the word that carries it is overwritten.
        self.gather(masked, lead, &mut watch, Awaited::Leaving, |ack| ack == Ack::Out)?;
        let mark = |mark| lead.mail.delivery().mark(masked, mark);
        mark(Mark::Begun);
        lead.gate.shut();

        // ORDERING: Relaxed, the word is ours (RV2).
        let generation = self.phase.load(Relaxed).next_generation();
        let others: CpuSet = self.waited_for().map(|(cpu, _)| cpu).collect();
        self.arrivals.expect(generation, others.len());
        watch.counts_anew();
        // ORDERING: Release, pairs with the Acquire in `park`: who counts itself finds the count of this generation, and
        //   whoever comes to the gate finds it shut. Who is woken by our post sees the phase, as the inbox passes on
        //   what came before.
        self.phase.store(Phase::Quiesce(generation), Release);
        let release = |outcome| {
            // ORDERING: Release, pairs with the Acquire in `park`: a released CPU sees what the work did.
            self.phase.store(Phase::Released(generation, outcome), Release);
            lead.gate.open();
        };
        lead.mail.post_all(&others, Kind::Rendezvous);
        mark(Mark::Rung);
        let arrived = |ack| ack == Ack::Arrived(generation);
        self.gather(masked, lead, &mut watch, Awaited::Arriving, arrived)
            .inspect_err(|_| release(Outcome::Cancelled))?;
        mark(Mark::AllArrived);

        // ORDERING: Relaxed, ordered by the fence.
        self.phase.store(Phase::Stopped(generation), Relaxed);
        // ORDERING: SeqCst, "publish mine, then look at yours": the phase, then the acknowledgements here; its
        //   acknowledgement, then the phase in `park`. Either we see that it serves, or it sees that it must not.
        fence(SeqCst);
        self.gather(masked, lead, &mut watch, Awaited::Stopping, arrived)
            .inspect_err(|_| release(Outcome::Cancelled))?;
        mark(Mark::AllStopped);

        // SAFETY: every other vcpu that runs has `Arrived` in this generation (RV1), and does nothing but wait (RV3) until
        // we release it (RV2), after the token's last use.
        let quiesced = unsafe { Quiesced::assume() };
        let (outcome, result) = work(&quiesced, masked);
        release(outcome);
        mark(Mark::AllReleased);
        Ok(result)
    }

    /// Waits until all have `reached` it, or the deadline; then tells who has not.
    #[expect(clippy::result_large_err, reason = "as in `run`")]
    fn gather<D, G, C>(
        &self,
        masked: &Masked,
        lead: &Lead<'_, D, G, C>,
        watch: &mut Watch<'_, C>,
        awaited: Awaited,
        reached: impl Fn(Ack) -> bool,
    ) -> Result<(), Missing>
    where
        D: Delivery,
        G: Gate + ?Sized,
        C: Clock + ?Sized,
    {
        // ORDERING: Acquire, pairs with the Release of the acknowledgements in `park`: the work comes after all that
        //   the follower did.
        let missing = |ack: &AtomicAck| !reached(ack.load(Acquire));
        let who = || Missing {
            awaited,
            cpus: self.waited_for().filter(|(_, ack)| missing(ack)).map(|(cpu, _)| cpu).collect(),
        };
        let mut backoff = Backoff::new(lead.gate, self.patience);
        for (_, ack) in self.waited_for() {
            while missing(ack) {
                let left_ns = match watch.look(self.arrivals.left()) {
                    Look::Wait { left_ns } => left_ns,
                    Look::Tell => {
                        watch.tell(&who());
                        continue;
                    }
                    Look::Over => {
                        let missing = who();
                        // The last one may have come while we wrote down its name.
                        return if missing.cpus.is_empty() { Ok(()) } else { Err(missing) };
                    }
                };
                // Once `Stopped` has been said nobody may ask us for anything any more, nor we anybody.
                if awaited != Awaited::Stopping {
                    lead.gate.take_events(masked);
                    lead.mail.serve(masked);
                }
                // The last one to count itself wakes us. It says `Arrived` after that, and is then waited for on the spot.
                if awaited == Awaited::Arriving && self.arrivals.left() != 0 {
                    lead.gate.doze(masked, Some(left_ns));
                } else {
                    backoff.step();
                }
            }
        }
        Ok(())
    }

    /// Whether every other CPU is out of the last rendezvous, so that the next one would begin at once. Context: vCPU 0.
    pub fn all_have_left(&self) -> bool {
        // ORDERING: Relaxed: says only that the outcome has been read, as in `Parked`'s drop.
        self.waited_for().all(|(_, ack)| ack.load(Relaxed) == Ack::Out)
    }

    /// The CPUs that a rendezvous waits for; vCPU 0 is not among them. Context: vCPU 0.
    pub(crate) fn waited_for(&self) -> impl Iterator<Item = (CpuId, &AtomicAck)> {
        // ORDERING: Relaxed: whether it is `Offline` is written by vCPU 0, which is us.
        self.acks.iter().filter(|(_, ack)| ack.load(Relaxed) != Ack::Offline)
    }

    /// Whether this CPU is to park. One load of a line that is written only in a rendezvous. Context: any; the executor
    /// asks between polls, before it sleeps, and before it returns to user mode.
    pub fn is_requested(&self) -> bool {
        // ORDERING: Relaxed: `park` looks again. A CPU that goes to sleep after a `false` has the leader's IPI pending,
        //   or had it: and then the acquire in its inbox makes the phase visible.
        matches!(self.phase.load(Relaxed), Phase::Quiesce(_) | Phase::Stopped(_))
    }

    /// Waits, if a rendezvous is on, until it is over.
    ///
    /// Context: any CPU but vCPU 0, in its executor, upcalls masked by the caller. After an outcome of `Resumed` the
    /// caller restores this CPU before it drops the result, and drops it before it unmasks upcalls. A CPU that was taken down in here and
    /// is started in a new domain calls it once more, and gets the outcome that it waited for. Without a rendezvous, or with one that was
    /// cancelled before this CPU came, it returns `Cancelled` at once.
    ///
    /// Cost: one hypercall for each time that it sleeps: once, or more often where it is called or events come for it; the
    /// last one to arrive makes one more, to wake the leader. Lines: its own acknowledgement is written twice, the
    /// count of arrivals once, the phase read three times.
    ///
    /// # Panics
    /// On vCPU 0, which would wait for itself.
    pub fn park<'a, D, G>(&'a self, masked: &'a Masked, gate: &G, mail: &Mail<D>) -> Parked<'a>
    where
        D: Delivery,
        G: Gate + ?Sized,
    {
        assert_ne!(current(), CpuId::BOOT, "vCPU 0 leads and does not park");
        let ack = self.acks.mine();
        let serve = || {
            gate.take_events(masked);
            mail.serve(masked);
        };
        // ORDERING: Relaxed, our own; Xen passes it on to a later life of this CPU.
        let mut said = match ack.load(Relaxed) {
            // `Serving`: taken down between saying so and saying `Arrived` again. It served nobody, as the phase was another one by then.
            Ack::Arrived(generation) | Ack::Serving(generation) => Ack::Arrived(generation),
            Ack::Out | Ack::Offline => Ack::Out,
        };
        let outcome = loop {
            // ORDERING: Acquire, pairs with the Release of the leader's release: we see what the work did; and with that of
            //   its question.
            let phase = self.phase.load(Acquire);
            match phase {
                Phase::Quiesce(generation) => {
                    if said == Ack::Arrived(generation) {
                        // ORDERING: Relaxed, ordered by the fence.
                        ack.store(Ack::Serving(generation), Relaxed);
                        // ORDERING: SeqCst, pairs with the fence in `run`; see there.
                        fence(SeqCst);
                        // ORDERING: Relaxed, ordered by the fence.
                        if self.phase.load(Relaxed) == phase {
                            serve();
                        }
                    } else {
                        serve();
                        mail.delivery().mark(masked, Mark::Arrived);
                        if self.arrivals.one(generation) {
                            mail.post(CpuId::BOOT, Kind::Rendezvous);
                        }
                    }
                    said = Ack::Arrived(generation);
                    // ORDERING: Release, pairs with the Acquire in `gather`: what this CPU did before is over.
                    ack.store(said, Release);
                    self.wait(phase, gate, || gate.doze(masked, None));
                }
                // From here on nothing but this loop (RV3).
                Phase::Stopped(_) => self.wait(phase, gate, || gate.sleep(masked)),
                // One that ended without us was cancelled for want of us: no work was done.
                Phase::Released(generation, outcome) if said == Ack::Arrived(generation) => break outcome,
                Phase::Released(..) | Phase::Run => break Outcome::Cancelled,
            }
        };
        Parked { ack, outcome, _masked: masked }
    }

    /// Spins for a while, then sleeps once, unless the phase is another one meanwhile. It looks at least once: a CPU that has
    /// taken the next question out of its inbox without knowing, as it was to serve in this one, is not rung for it again.
    fn wait(&self, phase: Phase, gate: &(impl Gate + ?Sized), sleep: impl FnOnce()) {
        // ORDERING: Relaxed: who sees a change looks again. Of a question that it has taken it does see the phase, as the inbox
        //   passes on what came before.
        let over = || self.phase.load(Relaxed) != phase;
        for _ in 0..self.patience.0 {
            if over() {
                return;
            }
            gate.spin();
        }
        if !over() {
            sleep();
        }
    }
}

/// A CPU that has been released. Until this is dropped the next rendezvous does not begin.
#[must_use = "restore this CPU by the outcome first"]
pub struct Parked<'a> {
    ack: &'a AtomicAck,
    outcome: Outcome,
    _masked: &'a Masked,
}

impl Parked<'_> {
    /// What this CPU has to do.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        // ORDERING: Relaxed: says only that the outcome has been read. What this CPU did since is passed on by its next
        //   acknowledgement.
        self.ack.store(Ack::Out, Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
#[path = "rendezvous_tests.rs"]
mod tests;

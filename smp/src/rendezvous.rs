//! [`Rendezvous`]: every other vcpu waits, masked, while vCPU 0 works. Suspend happens in there.
//!
//! | phase | leader (vCPU 0) | follower, in [`Rendezvous::park`] |
//! |---|---|---|
//! | `Run` or `Released` | waits until all are out of the last one | runs |
//! | `Quiesce` | rings every CPU, serves its inbox, waits for all `Arrived` | acknowledges, serves its inbox |
//! | `Stopped` | waits for all `Stopped`, then does the work | acknowledges, looks at the phase word |
//! | `Released` | runs | restores what it must, then says `Out` |
//!
//! Two acknowledgements, not one: a task that waits for a call on another CPU cannot park before the call has been
//! done, so CPUs that have arrived go on serving calls until the last has arrived; then nobody can be waiting for
//! anybody.
//!
//! Nobody parks inside an upcall. The IPI only gets a CPU out of sleep or user mode; its executor asks
//! [`is_requested`](Rendezvous::is_requested) between polls and parks there, so no task is ever stopped half way
//! through an update of page tables, and no kernel code can hold an mfn across a suspend.
//!
//! **The suspend may strike a follower at any instruction of its wait**, and after a restore it runs on at once, before
//! the leader does, on an old clock page, without ports and without the vcpu_info that it had registered. So from its
//! second acknowledgement to its release a follower reads one word, executes `PAUSE` or yields, and does nothing else.
//! The restored domain has a structure in the place of vcpu_info that may deliver an upcall all the same: the upcall's
//! entry has to return at once then, with the frame's IF clear, which it knows from the flag that the kernel sets
//! around [`Rendezvous::park`] (`percpu::Area::set_parked`).
//!
//! Who writes: the phase word only the leader, each acknowledgement only its CPU (vCPU 0 for one that is down).
//! Suspend: *kept*. Blocking, with a limit before the work. Turned down: stopping in the upcall (Xen's `stop_machine`
//! may, as it has no page-table update that an upcall can interrupt); one counter for all acknowledgements (a shared
//! line that everybody writes, and it cannot tell who is missing).
//!
//! Weakening any ordering below fails in `tests/loom_rendezvous.rs`.

use crossbeam_utils::CachePadded;
use percpu::{CpuId, CpuSet, Masked, PerCpu, Quiesced, current};
use xen_sys::primitive::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::inbox::Kind;
use crate::mail::{Delivery, Mail};
use crate::missing::{Awaited, Missing};
use crate::phase::{Ack, AtomicAck, AtomicPhase, Outcome, Phase};
use crate::relax::{Backoff, Clock, Patience, Relax};
use crate::trace::Mark;

/// The state of all rendezvous of this kernel.
///
/// - RV1: every vcpu but vCPU 0 that executes kernel code has an acknowledgement other than `Offline`: it is admitted
///   before it is started and dismissed after it has gone down.
/// - RV2: the phase word is written by vCPU 0 only, inside [`Rendezvous::run`].
/// - RV3: a follower that has acknowledged `Stopped` does nothing but look at the phase word until that is `Released`.
pub struct Rendezvous {
    phase: CachePadded<AtomicPhase>,
    acks: PerCpu<AtomicAck>,
    patience: Patience,
}

/// What the leader works with.
pub struct Lead<'a, D, R: ?Sized, C: ?Sized> {
    /// Through which the others are called.
    pub mail: &'a Mail<D>,
    /// How to wait.
    pub relax: &'a R,
    /// Measures the limit.
    pub clock: &'a C,
    /// How long to wait for everybody, from the call to the start of the work, in ns.
    pub limit_ns: u64,
}

impl Rendezvous {
    /// For the first `nr` CPUs, all but vCPU 0 down.
    pub fn new(nr: usize, patience: Patience) -> Rendezvous {
        Rendezvous {
            phase: CachePadded::new(AtomicPhase::new(Phase::Run)),
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
    /// no lock, allocate nothing and log nothing. Cost: one IPI for each vcpu, 32 of them a hypercall; two rounds of
    /// waiting for the slowest.
    ///
    /// # Errors
    /// [`Missing`] when the limit is over before `work` was begun; all is as before then.
    ///
    /// # Panics
    /// On another CPU, or from inside `work`: a bug of ours.
    #[expect(clippy::result_large_err, reason = "a set of 1024 CPUs; boxing it would allocate while others are parked")]
    pub fn run<T, D, R, C>(
        &self,
        masked: &Masked,
        lead: &Lead<'_, D, R, C>,
        work: impl FnOnce(&Quiesced, &Masked) -> (Outcome, T),
    ) -> Result<T, Missing>
    where
        D: Delivery,
        R: Relax + ?Sized,
        C: Clock + ?Sized,
    {
        assert_eq!(current(), CpuId::BOOT, "only vCPU 0 leads a rendezvous");
        assert!(!self.is_requested(), "a rendezvous inside a rendezvous");
        let deadline_ns = lead.clock.now_ns().saturating_add(lead.limit_ns);
        let gather = |awaited, reached: &dyn Fn(Ack) -> bool, serve: bool| {
            self.gather(lead, deadline_ns, reached, || {
                if serve {
                    lead.mail.serve(masked);
                }
            })
            .map_err(|cpus| Missing { awaited, cpus })
        };

        // A follower that still holds an outcome has to act on it before the word that carries it is overwritten.
        let mark = |mark| lead.mail.delivery().mark(masked, mark);
        gather(Awaited::Leaving, &|ack| ack == Ack::Out, true)?;
        mark(Mark::Begun);

        // ORDERING: Relaxed, the word is ours (RV2).
        let generation = self.phase.load(Relaxed).next_generation();
        // ORDERING: Relaxed: only asks. Who is woken by our post sees it, as the inbox passes on what came before.
        self.phase.store(Phase::Quiesce(generation), Relaxed);
        let release = |outcome| {
            // ORDERING: Release, pairs with the Acquire in `park`: a released CPU sees what the work did.
            self.phase.store(Phase::Released(generation, outcome), Release);
        };
        lead.mail.post_all(&self.waited_for().map(|(cpu, _)| cpu).collect(), Kind::Rendezvous);
        mark(Mark::Rung);
        gather(Awaited::Arriving, &|ack| ack == Ack::Arrived(generation), true)
            .inspect_err(|_| release(Outcome::Cancelled))?;
        mark(Mark::AllArrived);

        // ORDERING: Relaxed: only asks, again.
        self.phase.store(Phase::Stopped(generation), Relaxed);
        gather(Awaited::Stopping, &|ack| ack == Ack::Stopped(generation), false)
            .inspect_err(|_| release(Outcome::Cancelled))?;
        mark(Mark::AllStopped);

        // SAFETY: every other vcpu that runs has acknowledged `Stopped` of this generation (RV1), and stays in its loop
        // (RV3) until we release it (RV2), after the token's last use.
        let quiesced = unsafe { Quiesced::assume() };
        let (outcome, result) = work(&quiesced, masked);
        release(outcome);
        mark(Mark::AllReleased);
        Ok(result)
    }

    /// Waits until all have `reached` it, or the deadline; then tells who has not.
    #[expect(clippy::result_large_err, reason = "as in `run`")]
    fn gather<D, R, C>(
        &self,
        lead: &Lead<'_, D, R, C>,
        deadline_ns: u64,
        reached: impl Fn(Ack) -> bool,
        mut meanwhile: impl FnMut(),
    ) -> Result<(), CpuSet>
    where
        R: Relax + ?Sized,
        C: Clock + ?Sized,
    {
        // ORDERING: Acquire, pairs with the Release of the acknowledgements in `park`: the work comes after all that
        //   the follower did.
        let missing = |ack: &AtomicAck| !reached(ack.load(Acquire));
        let mut backoff = Backoff::new(lead.relax, self.patience);
        for (_, ack) in self.waited_for() {
            while missing(ack) {
                if lead.clock.now_ns() >= deadline_ns {
                    let cpus: CpuSet = self.waited_for().filter(|(_, ack)| missing(ack)).map(|(cpu, _)| cpu).collect();
                    // The last one may have come while we wrote down its name.
                    return if cpus.is_empty() { Ok(()) } else { Err(cpus) };
                }
                meanwhile();
                backoff.step();
            }
        }
        Ok(())
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
    /// caller restores this CPU before it drops the result, and drops it before it unmasks upcalls. Without a
    /// rendezvous, or with one that was cancelled before this CPU came, it returns `Cancelled` at once.
    ///
    /// # Panics
    /// On vCPU 0, which would wait for itself.
    pub fn park<'a, D, R>(&'a self, masked: &'a Masked, relax: &R, mail: &Mail<D>) -> Parked<'a>
    where
        D: Delivery,
        R: Relax + ?Sized,
    {
        assert_ne!(current(), CpuId::BOOT, "vCPU 0 leads and does not park");
        let ack = self.acks.mine();
        let mut said = Ack::Out;
        let mut backoff = Backoff::new(relax, self.patience);
        let outcome = loop {
            // ORDERING: Acquire, pairs with the Release of the leader's release: we see what the work did.
            let (answer, mark) = match self.phase.load(Acquire) {
                Phase::Quiesce(generation) => {
                    mail.serve(masked);
                    (Ack::Arrived(generation), Mark::Arrived)
                }
                // From here on nothing but this loop (RV3), once we have said so.
                Phase::Stopped(generation) => (Ack::Stopped(generation), Mark::Stopped),
                // One that ended without us was cancelled for want of us: no work was done.
                Phase::Released(generation, outcome) if said == Ack::Stopped(generation) => break outcome,
                Phase::Released(..) | Phase::Run => break Outcome::Cancelled,
            };
            if said != answer {
                said = answer;
                mail.delivery().mark(masked, mark);
                // ORDERING: Release, pairs with the Acquire in `gather`: what this CPU did before is over.
                ack.store(answer, Release);
            }
            backoff.step();
        };
        Parked { ack, outcome, _masked: masked }
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
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    use percpu::hosted;

    use super::*;
    use crate::tests::{Alone, Noted, kernel};

    /// Every look takes one nanosecond.
    #[derive(Default)]
    struct Looks(Cell<u64>);

    impl Clock for Looks {
        fn now_ns(&self) -> u64 {
            self.0.set(self.0.get() + 1);
            self.0.get()
        }
    }

    fn cpu(n: usize) -> CpuId {
        CpuId::new(n).expect("tests use small numbers")
    }

    fn admitted(nr: usize) -> Rendezvous {
        let rendezvous = Rendezvous::new(nr, Patience(3));
        CpuId::first(nr).skip(1).for_each(|cpu| rendezvous.admit(cpu));
        rendezvous
    }

    fn lead<'a, C: Clock>(mail: &'a Mail<Noted>, clock: &'a C, limit_ns: u64) -> Lead<'a, Noted, Alone, C> {
        Lead { mail, relax: &Alone, clock, limit_ns }
    }

    #[test]
    fn works_with_all_stopped_and_hands_out_the_outcome() {
        const NR: usize = 4;
        const OUTCOMES: [Outcome; 3] = [Outcome::Continued, Outcome::Cancelled, Outcome::Resumed];
        let (mail, _on) = kernel(NR);
        let rendezvous = admitted(NR);
        let running = AtomicUsize::new(NR - 1);
        let left = AtomicUsize::new(NR - 1);
        std::thread::scope(|scope| {
            for n in 1..NR {
                let (rendezvous, mail, running, left) = (&rendezvous, &mail, &running, &left);
                scope.spawn(move || {
                    let _on = hosted::enter(cpu(n));
                    for outcome in OUTCOMES {
                        while !rendezvous.is_requested() {
                            std::thread::yield_now();
                        }
                        running.fetch_sub(1, Relaxed);
                        let masked = hosted::masked();
                        let parked = rendezvous.park(&masked, &Alone, mail);
                        assert_eq!(parked.outcome(), outcome);
                        running.fetch_add(1, Relaxed);
                    }
                    let masked = hosted::masked();
                    assert_eq!(rendezvous.park(&masked, &Alone, mail).outcome(), Outcome::Cancelled, "it is over");
                    left.fetch_sub(1, Relaxed);
                });
            }
            for outcome in OUTCOMES {
                let result =
                    rendezvous.run(&hosted::masked(), &lead(&mail, &Alone, 1), |_, _| (outcome, running.load(Relaxed)));
                assert_eq!(result, Ok(0), "nobody runs while the work is done");
            }
        });
        assert_eq!(left.into_inner(), 0);
    }

    #[test]
    fn names_those_that_do_not_come() {
        let (mail, _on) = kernel(40);
        let rendezvous = Rendezvous::new(40, Patience(3));
        [3, 7, 8, 39].into_iter().for_each(|n| rendezvous.admit(cpu(n)));
        // SAFETY: it was never started.
        unsafe { rendezvous.dismiss(cpu(8)) };
        let missing = rendezvous
            .run(&hosted::masked(), &lead(&mail, &Looks::default(), 10), |_, _| (Outcome::Resumed, ()))
            .expect_err("nobody comes");
        assert_eq!(missing.awaited, Awaited::Arriving);
        assert_eq!(missing.to_string(), "rendezvous: vcpus 3,7,39 did not arrive in time");
        assert!(!rendezvous.is_requested());
        let rung = mail.delivery().rings.lock().expect("no test panics in there").clone();
        assert_eq!(rung, [cpu(3), cpu(7), cpu(39)]);
    }

    #[test]
    fn a_late_comer_goes_on_at_once() {
        let (mail, _on) = kernel(2);
        let rendezvous = admitted(2);
        let masked = hosted::masked();
        let one = || {
            let _on = hosted::enter(cpu(1));
            rendezvous.park(&masked, &Alone, &mail).outcome()
        };
        assert_eq!(one(), Outcome::Cancelled, "there was none yet");
        let missing = rendezvous.run(&masked, &lead(&mail, &Looks::default(), 3), |_, _| (Outcome::Resumed, ()));
        assert!(missing.is_err());
        assert_eq!(one(), Outcome::Cancelled, "it is over");
    }

    #[test]
    fn the_next_waits_until_all_have_left() {
        let (mail, _on) = kernel(2);
        let rendezvous = admitted(2);
        let go = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let follower = scope.spawn(|| {
                let _on = hosted::enter(cpu(1));
                let masked = hosted::masked();
                while !rendezvous.is_requested() {
                    std::thread::yield_now();
                }
                let parked = rendezvous.park(&masked, &Alone, &mail);
                while !go.load(Relaxed) {
                    std::thread::yield_now();
                }
                parked.outcome()
            });
            let masked = hosted::masked();
            let first = rendezvous.run(&masked, &lead(&mail, &Alone, 1), |_, _| (Outcome::Resumed, ()));
            assert_eq!(first, Ok(()));
            let missing = rendezvous
                .run(&masked, &lead(&mail, &Looks::default(), 3), |_, _| (Outcome::Continued, ()))
                .expect_err("it has not left");
            assert_eq!((missing.awaited, missing.cpus.len()), (Awaited::Leaving, 1));
            assert!(!rendezvous.is_requested(), "the outcome still stands");
            go.store(true, Relaxed);
            assert_eq!(follower.join().expect("the follower has panicked"), Outcome::Resumed);
        });
    }

    #[test]
    fn alone_it_is_at_once() {
        let (mail, _on) = kernel(1);
        let rendezvous = admitted(1);
        let result =
            rendezvous.run(&hosted::masked(), &lead(&mail, &Looks::default(), 0), |_, _| (Outcome::Continued, 7));
        assert_eq!(result, Ok(7));
    }

    #[test]
    #[should_panic(expected = "only vCPU 0 leads")]
    fn only_vcpu_0_leads() {
        let (mail, _on) = kernel(2);
        let _one = hosted::enter(cpu(1));
        let _ = admitted(2).run(&hosted::masked(), &lead(&mail, &Alone, 1), |_, _| (Outcome::Continued, ()));
    }

    #[test]
    #[should_panic(expected = "vCPU 0 leads and does not park")]
    fn vcpu_0_does_not_park() {
        let (mail, _on) = kernel(2);
        let _ = admitted(2).park(&hosted::masked(), &Alone, &mail);
    }

    #[test]
    #[should_panic(expected = "a rendezvous inside a rendezvous")]
    fn not_inside_itself() {
        let (mail, _on) = kernel(1);
        let rendezvous = admitted(1);
        let _ = rendezvous.run(&hosted::masked(), &lead(&mail, &Alone, 1), |_, masked| {
            (Outcome::Continued, rendezvous.run(masked, &lead(&mail, &Alone, 1), |_, _| (Outcome::Continued, ())))
        });
    }
}

//! The driver of suspend and resume: keeps to the tables in [`order`](crate::order), and undoes what was done.
//!
//! Before this: tasks frozen and xenbus quiet (`kernel`, awaits), then [`Rendezvous::run`](crate::Rendezvous::run),
//! whose work is [`suspend`] and, on vCPU 0, [`restore_cpu`]. After it: the release; in a new domain all others are started (`kernel`); and then on
//! every *other* CPU at the same time [`restore_cpu`]. Devices' ports come last, and nobody waits for them.
//!
//! | scope | steps | when |
//! |---|---|---|
//! | once, on vCPU 0, all others stopped | [`PREPARE`] | before the hypercall; undone in reverse without a new domain |
//! | once, on vCPU 0, all others stopped | [`TAKE_OVER`] | in a new domain |
//! | every CPU, for itself | [`RESUMED`], [`CONTINUED`] | vCPU 0 before the release, all others after it, in parallel |
//!
//! The scope is in the types: what is done once can fail and is asked of [`Steps`], with `&Quiesced`; what each CPU
//! does is asked of [`CpuSteps`], which is shared.
#![forbid(unsafe_code)]

use core::fmt;

use percpu::{Masked, Quiesced};
use xen_sys::Errno;
use xen_sys::hypercall::sched::SuspendOutcome;

use crate::order::{CONTINUED, EachCpu, PREPARE, Prepare, RESUMED, Row, TAKE_OVER, TakeOver};
use crate::phase::Outcome;

/// What the kernel does once. Context of each: vCPU 0, upcalls masked, all others stopped; no lock, no allocation, no
/// logging.
pub trait Steps {
    /// Why a step failed.
    type Error;

    /// Does `step`, or leaves all as it was.
    ///
    /// # Errors
    /// The kernel's.
    fn prepare(&mut self, step: Prepare, others: &Quiesced, masked: &Masked) -> Result<(), Self::Error>;

    /// Undoes `step`, in the domain that it was done in.
    fn undo(&mut self, step: Prepare, others: &Quiesced, masked: &Masked);

    /// `SCHEDOP_shutdown(SHUTDOWN_suspend)`.
    ///
    /// # Errors
    /// Xen's; the domain was not suspended.
    fn suspend(&mut self, others: &Quiesced, masked: &Masked) -> Result<SuspendOutcome, Errno>;

    /// Does `step`. There is no way back from a new domain.
    ///
    /// # Errors
    /// The kernel's; [`Steps::lost`] follows.
    fn take_over(&mut self, step: TakeOver, others: &Quiesced, masked: &Masked) -> Result<(), Self::Error>;

    /// A new domain that cannot be lived in: says why, and ends it. All others are down, and stay so: started, they
    /// would fail on what is missing, and their complaint could come before the reason.
    fn lost(&mut self, failed: Failed<TakeOver, Self::Error>, others: &Quiesced, masked: &Masked) -> !;

    /// `RollCall::begin`: the last thing before the release, unless nothing was suspended.
    fn begin_roll_call(&mut self, others: &Quiesced);
}

/// What the kernel does on every CPU. Context of each: that CPU, upcalls masked.
pub trait CpuSteps {
    /// Why a step failed.
    type Error;

    /// Does `step` for this CPU.
    ///
    /// # Errors
    /// The kernel's.
    fn each_cpu(&self, step: EachCpu, masked: &Masked) -> Result<(), Self::Error>;
}

/// A step that failed, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failed<S, E> {
    /// Which.
    pub step: S,
    /// Why.
    pub error: E,
}

impl<S: fmt::Debug, E: fmt::Display> fmt::Display for Failed<S, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.step, self.error)
    }
}

impl<S: fmt::Debug, E: fmt::Display + fmt::Debug> core::error::Error for Failed<S, E> {}

/// How the quiesced part ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Ended<E> {
    /// In a new domain, taken over.
    Resumed,
    /// In the same domain after a suspend; all preparation undone.
    Continued,
    /// Not suspended, as a preparation failed; those before it undone.
    NotPrepared(Failed<Prepare, E>),
    /// Not suspended, as Xen refused; all preparation undone.
    Refused(Errno),
}

impl<E> Ended<E> {
    /// What the other CPUs are released with.
    pub fn outcome(&self) -> Outcome {
        match self {
            Ended::Resumed => Outcome::Resumed,
            Ended::Continued => Outcome::Continued,
            Ended::NotPrepared(_) | Ended::Refused(_) => Outcome::Cancelled,
        }
    }
}

/// Suspends this domain: [`PREPARE`], the hypercall, and then either [`TAKE_OVER`] or all of [`PREPARE`] undone in
/// reverse. Does not return if the new domain was [lost](Steps::lost). Context: the work of a rendezvous.
pub fn suspend<S: Steps>(steps: &mut S, others: &Quiesced, masked: &Masked) -> Ended<S::Error> {
    for (done, row) in PREPARE.iter().enumerate() {
        if let Err(error) = steps.prepare(row.step, others, masked) {
            undo(steps, done, others, masked);
            return Ended::NotPrepared(Failed { step: row.step, error });
        }
    }
    match steps.suspend(others, masked) {
        Err(errno) => {
            undo(steps, PREPARE.len(), others, masked);
            Ended::Refused(errno)
        }
        Ok(SuspendOutcome::Continued) => {
            undo(steps, PREPARE.len(), others, masked);
            steps.begin_roll_call(others);
            Ended::Continued
        }
        Ok(SuspendOutcome::Resumed) => {
            for row in &TAKE_OVER {
                if let Err(error) = steps.take_over(row.step, others, masked) {
                    steps.lost(Failed { step: row.step, error }, others, masked);
                }
            }
            steps.begin_roll_call(others);
            Ended::Resumed
        }
    }
}

fn undo<S: Steps>(steps: &mut S, done: usize, others: &Quiesced, masked: &Masked) {
    for row in PREPARE[..done].iter().rev() {
        steps.undo(row.step, others, masked);
    }
}

/// Brings this CPU back after `outcome`. Context: a CPU that has been released, before it drops its `Parked`; vCPU 0
/// while all others are parked.
///
/// # Errors
/// The first step that failed; those after it were not tried. The caller panics: this CPU can neither run nor be left
/// out.
pub fn restore_cpu<S: CpuSteps>(steps: &S, outcome: Outcome, masked: &Masked) -> Result<(), Failed<EachCpu, S::Error>> {
    let rows: &[Row<EachCpu>] = match outcome {
        Outcome::Resumed => &RESUMED,
        Outcome::Continued => &CONTINUED,
        Outcome::Cancelled => &[],
    };
    for row in rows {
        steps.each_cpu(row.step, masked).map_err(|error| Failed { step: row.step, error })?;
    }
    Ok(())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::RefCell;
    use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::Relaxed;

    use percpu::{CpuId, hosted};

    use super::*;
    use crate::tests::{Alone, kernel, quiesced};
    use crate::{Gate, Lead, Limits, Patience, Relax, Rendezvous};

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Done {
        Prepare(Prepare),
        Undo(Prepare),
        Suspend,
        TakeOver(TakeOver),
        Lost(TakeOver),
        RollCall,
    }

    /// What the fake's domain ends with.
    struct Lost;

    struct Fake {
        log: Vec<Done>,
        fails: Option<Done>,
        suspend: Result<SuspendOutcome, Errno>,
    }

    impl Fake {
        fn step(&mut self, what: Done) -> Result<(), &'static str> {
            self.log.push(what);
            if self.fails == Some(what) { Err("it was asked to fail") } else { Ok(()) }
        }
    }

    impl Steps for Fake {
        type Error = &'static str;

        fn prepare(&mut self, step: Prepare, _: &Quiesced, _: &Masked) -> Result<(), &'static str> {
            self.step(Done::Prepare(step))
        }

        fn undo(&mut self, step: Prepare, _: &Quiesced, _: &Masked) {
            self.log.push(Done::Undo(step));
        }

        fn suspend(&mut self, _: &Quiesced, _: &Masked) -> Result<SuspendOutcome, Errno> {
            self.log.push(Done::Suspend);
            self.suspend
        }

        fn take_over(&mut self, step: TakeOver, _: &Quiesced, _: &Masked) -> Result<(), &'static str> {
            self.step(Done::TakeOver(step))
        }

        fn lost(&mut self, failed: Failed<TakeOver, &'static str>, _: &Quiesced, _: &Masked) -> ! {
            self.log.push(Done::Lost(failed.step));
            panic_any(Lost)
        }

        fn begin_roll_call(&mut self, _: &Quiesced) {
            self.log.push(Done::RollCall);
        }
    }

    fn run(suspend: Result<SuspendOutcome, Errno>, fails: Option<Done>) -> (Ended<&'static str>, Vec<Done>) {
        let mut fake = Fake { log: Vec::new(), fails, suspend };
        let ended = quiesced(|others| super::suspend(&mut fake, others, &hosted::masked()));
        (ended, fake.log)
    }

    fn prepared() -> Vec<Done> {
        PREPARE.iter().map(|row| Done::Prepare(row.step)).collect()
    }

    fn undone() -> Vec<Done> {
        PREPARE.iter().rev().map(|row| Done::Undo(row.step)).collect()
    }

    #[test]
    fn resumed_takes_over_and_undoes_nothing() {
        let (ended, log) = run(Ok(SuspendOutcome::Resumed), None);
        assert_eq!(ended, Ended::Resumed);
        let taken_over = TAKE_OVER.iter().map(|row| Done::TakeOver(row.step)).collect();
        assert_eq!(log, [prepared(), vec![Done::Suspend], taken_over, vec![Done::RollCall]].concat());
    }

    #[test]
    fn continued_undoes_all_in_reverse() {
        let (ended, log) = run(Ok(SuspendOutcome::Continued), None);
        assert_eq!(ended, Ended::Continued);
        assert_eq!(log, [prepared(), vec![Done::Suspend], undone(), vec![Done::RollCall]].concat());
    }

    #[test]
    fn refused_leaves_everything_as_it_was() {
        let (ended, log) = run(Err(Errno::EPERM), None);
        assert_eq!(ended, Ended::Refused(Errno::EPERM));
        assert_eq!(log, [prepared(), vec![Done::Suspend], undone()].concat());
        assert_eq!(ended.outcome(), Outcome::Cancelled);
    }

    #[test]
    fn a_preparation_that_fails_undoes_those_before_it() {
        for (n, row) in PREPARE.iter().enumerate() {
            let (ended, log) = run(Ok(SuspendOutcome::Resumed), Some(Done::Prepare(row.step)));
            assert_eq!(ended, Ended::NotPrepared(Failed { step: row.step, error: "it was asked to fail" }));
            assert_eq!(ended.outcome(), Outcome::Cancelled);
            let undone = undone().split_off(PREPARE.len() - n);
            assert_eq!(log, [prepared()[..=n].to_vec(), undone].concat());
        }
    }

    /// Waits until it is told that the domain is dead; then it leaves the loop that nobody releases it from.
    struct UntilDead<'a>(&'a AtomicBool);

    impl Relax for UntilDead<'_> {
        fn spin(&self) {
            self.give_up_processor();
        }

        fn give_up_processor(&self) {
            if self.0.load(Relaxed) {
                panic_any(Lost);
            }
            std::thread::yield_now();
        }
    }

    impl Gate for UntilDead<'_> {}

    /// Whoever was parked stays so.
    #[test]
    fn a_take_over_that_fails_ends_there_and_releases_nobody() {
        for (n, row) in TAKE_OVER.iter().enumerate() {
            let fails = Some(Done::TakeOver(row.step));
            let mut fake = Fake { log: Vec::new(), fails, suspend: Ok(SuspendOutcome::Resumed) };
            let (mail, _on) = kernel(2);
            let rendezvous = Rendezvous::new(2, Patience(0));
            let other = CpuId::new(1).expect("a small number");
            rendezvous.admit(other);
            let dead = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let follower = scope.spawn(|| {
                    let _on = hosted::enter(other);
                    while !rendezvous.is_requested() {
                        std::thread::yield_now();
                    }
                    rendezvous.park(&hosted::masked(), &UntilDead(&dead), &mail).outcome()
                });
                let lead = Lead { mail: &mail, gate: &Alone, clock: &Alone, limits: Limits::only(1), overdue: &|_| () };
                let ended = catch_unwind(AssertUnwindSafe(|| {
                    let run = rendezvous.run(&hosted::masked(), &lead, |others, masked| {
                        let ended = suspend(&mut fake, others, masked);
                        (ended.outcome(), ended)
                    });
                    run.map_err(|missing| missing.to_string())
                }));
                assert!(ended.expect_err("the domain is lost").is::<Lost>());
                assert!(rendezvous.is_requested(), "the phase is still the one of the work");
                dead.store(true, Relaxed);
                assert!(follower.join().expect_err("nobody released it").is::<Lost>());
            });
            assert_eq!(fake.log.len(), PREPARE.len() + 1 + n + 2);
            assert_eq!(fake.log.last(), Some(&Done::Lost(row.step)));
            assert!(!fake.log.iter().any(|done| matches!(done, Done::Undo(_) | Done::RollCall)));
        }
    }

    struct FakeCpu {
        log: RefCell<Vec<EachCpu>>,
        fails: Option<EachCpu>,
    }

    impl CpuSteps for FakeCpu {
        type Error = &'static str;

        fn each_cpu(&self, step: EachCpu, _masked: &Masked) -> Result<(), &'static str> {
            self.log.borrow_mut().push(step);
            if self.fails == Some(step) { Err("it was asked to fail") } else { Ok(()) }
        }
    }

    #[test]
    fn each_cpu_does_what_the_outcome_asks() {
        for (outcome, rows) in
            [(Outcome::Resumed, &RESUMED[..]), (Outcome::Continued, &CONTINUED[..]), (Outcome::Cancelled, &[])]
        {
            let cpu = FakeCpu { log: RefCell::default(), fails: None };
            assert_eq!(restore_cpu(&cpu, outcome, &hosted::masked()), Ok(()));
            assert!(cpu.log.borrow().iter().eq(rows.iter().map(|row| &row.step)));
        }
    }

    #[test]
    fn a_cpu_that_cannot_bind_does_not_answer() {
        let cpu = FakeCpu { log: RefCell::default(), fails: Some(EachCpu::Bind) };
        let failed = restore_cpu(&cpu, Outcome::Resumed, &hosted::masked());
        assert_eq!(failed, Err(Failed { step: EachCpu::Bind, error: "it was asked to fail" }));
        assert_eq!(*cpu.log.borrow(), [EachCpu::Bind]);
    }

    #[test]
    fn a_failure_prints_step_and_reason() {
        let failed = Failed { step: Prepare::UnmapSharedInfo, error: Errno::EINVAL };
        assert_eq!(failed.to_string(), "UnmapSharedInfo: EINVAL (22)");
    }
}

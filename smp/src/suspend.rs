//! The order of suspend and resume, read in one place, and the driver that keeps to it.
//!
//! Before this: tasks frozen and xenbus quiet (`kernel`, awaits), then [`Rendezvous::run`](crate::Rendezvous::run), whose work is
//! [`suspend`]. After it: the release, and then on *every* CPU at the same time, vCPU 0 too, [`restore_cpu`]. Devices' ports come
//! last, and nobody waits for them.
//!
//! | scope | steps | when |
//! |---|---|---|
//! | once, on vCPU 0, all others stopped | [`PREPARE`] | before the hypercall; undone in reverse if it did not lead to a new domain |
//! | once, on vCPU 0, all others stopped | [`TAKE_OVER`] | in a new domain |
//! | every CPU, for itself, in parallel | [`RESUMED`], [`CONTINUED`] | after the release |
//!
//! What comes after a step in a table may need it, and the tables say what each needs; a test holds them to it. The scope is in
//! the types: what is done once can fail and is asked of [`Steps`], with `&Quiesced`; what each CPU does is asked of [`CpuSteps`],
//! which is shared.
//!
//! Turned down: notifier lists with priorities, to which each part of the kernel adds itself: no place then shows the order,
//! and the order is all there is to get right.
#![forbid(unsafe_code)]

use core::fmt;

use percpu::{Masked, Quiesced};
use xen_sys::Errno;
use xen_sys::hypercall::sched::SuspendOutcome;

use crate::phase::Outcome;

/// A step before the suspend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Prepare {
    /// Upcall masks 1 and nothing pending in all 32 legacy slots of `shared_info`. A restore takes the masks of vCPUs 0 to 31 from
    /// there, and without this an upcall strikes one that is parked.
    MaskLegacySlots,
    /// The demultiplexer lets go of `shared_info`.
    DetachEvents,
    /// `shared_info` out of every root: else the saver drops that whole table page, in silence.
    UnmapSharedInfo,
    /// `start_info`'s mfns of store and console to pfns, as the toolstack reads them.
    MfnsToPfns,
}

/// A step in a new domain, before anybody else is released.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TakeOver {
    /// The new `shared_info`, by the address in `start_info`.
    MapSharedInfo,
    /// As [`Prepare::MaskLegacySlots`], in the new page: placing a `vcpu_info` copies the mask.
    MaskLegacySlots,
    /// vCPU 0's own `vcpu_info`, and with it a clock.
    PlaceBootVcpuInfo,
    /// The guest's time goes on from where it was.
    RebaseClock,
    /// `p2m_cr3` names an mfn of the old domain; nobody notices before the next save.
    PublishP2m,
    /// The demultiplexer takes the new page; every old port means nothing from here on.
    AttachEvents,
}

/// A step of every CPU after the release.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EachCpu {
    /// In one multicall: own `vcpu_info` (vCPU 0 has it), runstate area, periodic timer stopped, virqs and IPIs bound, timer
    /// set. Then the IPI port is published.
    Bind,
    /// The timer is set, to fire at once. Nothing else was lost.
    SetTimer,
    /// One look into the inbox: events of what was posted before are lost.
    ServeInbox,
    /// `RollCall::restored`. Upcalls are unmasked after it.
    JoinRollCall,
}

/// A line of a table: a step, and which earlier ones of the same table it needs.
#[derive(Clone, Copy, Debug)]
pub struct Row<S: 'static> {
    /// The step.
    pub step: S,
    /// Steps that must have been done.
    pub needs: &'static [S],
}

/// Before the hypercall.
pub const PREPARE: [Row<Prepare>; 4] = [
    Row { step: Prepare::MaskLegacySlots, needs: &[] },
    Row { step: Prepare::DetachEvents, needs: &[] },
    Row { step: Prepare::UnmapSharedInfo, needs: &[Prepare::MaskLegacySlots, Prepare::DetachEvents] },
    Row { step: Prepare::MfnsToPfns, needs: &[] },
];

/// In a new domain.
pub const TAKE_OVER: [Row<TakeOver>; 6] = [
    Row { step: TakeOver::MapSharedInfo, needs: &[] },
    Row { step: TakeOver::MaskLegacySlots, needs: &[TakeOver::MapSharedInfo] },
    Row { step: TakeOver::PlaceBootVcpuInfo, needs: &[TakeOver::MaskLegacySlots] },
    Row { step: TakeOver::RebaseClock, needs: &[TakeOver::PlaceBootVcpuInfo, TakeOver::MapSharedInfo] },
    Row { step: TakeOver::PublishP2m, needs: &[TakeOver::MapSharedInfo] },
    Row { step: TakeOver::AttachEvents, needs: &[TakeOver::MapSharedInfo] },
];

/// Every CPU, in a new domain.
pub const RESUMED: [Row<EachCpu>; 3] = [
    Row { step: EachCpu::Bind, needs: &[] },
    Row { step: EachCpu::ServeInbox, needs: &[EachCpu::Bind] },
    Row { step: EachCpu::JoinRollCall, needs: &[EachCpu::Bind, EachCpu::ServeInbox] },
];

/// Every CPU, in the domain that it was in before.
pub const CONTINUED: [Row<EachCpu>; 2] =
    [Row { step: EachCpu::SetTimer, needs: &[] }, Row { step: EachCpu::JoinRollCall, needs: &[EachCpu::SetTimer] }];

/// What the kernel does once. Context of each: vCPU 0, upcalls masked, all others stopped; no lock, no allocation, no logging.
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
    /// The kernel's.
    fn take_over(&mut self, step: TakeOver, others: &Quiesced, masked: &Masked) -> Result<(), Self::Error>;

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
    /// In a new domain that cannot be lived in. The caller panics.
    Lost(Failed<TakeOver, E>),
}

impl<E> Ended<E> {
    /// What the other CPUs are released with.
    pub fn outcome(&self) -> Outcome {
        match self {
            Ended::Resumed | Ended::Lost(_) => Outcome::Resumed,
            Ended::Continued => Outcome::Continued,
            Ended::NotPrepared(_) | Ended::Refused(_) => Outcome::Cancelled,
        }
    }
}

/// Suspends this domain: [`PREPARE`], the hypercall, and then either [`TAKE_OVER`] or all of [`PREPARE`] undone in reverse.
/// Context: the work of a rendezvous.
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
                    return Ended::Lost(Failed { step: row.step, error });
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

/// Brings this CPU back after `outcome`. Context: a CPU that has been released, before it drops its `Parked`; vCPU 0 after
/// the rendezvous, before it unmasks.
///
/// # Errors
/// The first step that failed; those after it were not tried. The caller panics: this CPU can neither run nor be left out.
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

    use percpu::hosted;

    use super::*;
    use crate::tests::quiesced;

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Done {
        Prepare(Prepare),
        Undo(Prepare),
        Suspend,
        TakeOver(TakeOver),
        RollCall,
    }

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

    #[test]
    fn a_take_over_that_fails_ends_there() {
        for (n, row) in TAKE_OVER.iter().enumerate() {
            let (ended, log) = run(Ok(SuspendOutcome::Resumed), Some(Done::TakeOver(row.step)));
            assert_eq!(ended, Ended::Lost(Failed { step: row.step, error: "it was asked to fail" }));
            assert_eq!(ended.outcome(), Outcome::Resumed);
            assert_eq!(log.len(), PREPARE.len() + 1 + n + 1);
            assert!(!log.iter().any(|done| matches!(done, Done::Undo(_) | Done::RollCall)));
        }
    }

    /// Each step is there once, and after all that it needs.
    fn in_order<S: Copy + PartialEq + fmt::Debug>(rows: &[Row<S>]) {
        for (n, row) in rows.iter().enumerate() {
            let before = &rows[..n];
            assert!(before.iter().all(|earlier| earlier.step != row.step), "{:?} is there twice", row.step);
            for need in row.needs {
                assert!(before.iter().any(|earlier| earlier.step == *need), "{:?} comes before {need:?}", row.step);
            }
        }
    }

    #[test]
    fn every_step_comes_after_what_it_needs() {
        in_order(&PREPARE);
        in_order(&TAKE_OVER);
        in_order(&RESUMED);
        in_order(&CONTINUED);
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

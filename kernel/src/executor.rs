//! One executor for each CPU: a queue of tasks that are ready ([`RunQueue`]), and the loop that runs them.
//!
//! - A task belongs to one CPU for life, and waits while that is down. It runs until its next await point and is not preempted but by upcalls.
//! - Waking is lock-free and may happen anywhere: in an upcall, or on another CPU, which then sends an IPI. Running takes all that
//!   is ready at once, and waits for no waker.
//! - User mode is what a CPU runs where it would block otherwise ([`user`]), unless all is frozen; it is left when anything of this loop's is
//!   to be done.
//! - Freezing is a property of this loop: what a [`freezer`] holds is not polled, and a rendezvous is entered here and nowhere else, between
//!   two polls. So whatever a task does without an await in between (a page-table update, a hypercall that takes an mfn) is whole when
//!   the domain is saved, or its CPU goes down.
//!
//! Suspend: everything here is *kept*. Wakes that came as IPIs and got lost with their ports are made up for by each CPU
//! draining its inbox once after it has bound its ports anew.

use core::future::Future;
use core::ptr::NonNull;

use async_task::{Builder, Runnable};
use percpu::{CpuId, Masked, PerCpu};
use smp::trace::Mark;
use spin::Once;

use crate::cpus::{self, AfterPark};
use crate::run_queue::{Link, Linked, RunQueue};
use crate::{events, freezer, timer, trace, user};

type Task = Runnable<Meta>;

/// What stands in a task beside its future.
struct Meta {
    link: Link,
    class: Class,
}

/// Whether a task goes on while a suspend is made ready.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// It does: a suspend may need it.
    Own,
    /// It waits at its await.
    Frozen,
}

/// One CPU's tasks.
struct Tasks {
    /// Those that are to be polled.
    ready: RunQueue<Task>,
    /// Those that are ready and frozen. Added to and taken from by their own CPU alone.
    held: RunQueue<Task>,
}

/// Tasks polled before timers and rendezvous are looked at again.
const BATCH: usize = 16;

// SAFETY: `Runnable`'s own pair; its metadata stands in the task.
unsafe impl Linked for Task {
    fn link(&self) -> &Link {
        &self.metadata().link
    }

    fn into_raw(self) -> NonNull<()> {
        Runnable::into_raw(self)
    }

    unsafe fn from_raw(raw: NonNull<()>) -> Task {
        // SAFETY: as the caller says.
        unsafe { Runnable::from_raw(raw) }
    }
}

impl Tasks {
    /// Whether there are tasks that were frozen, and are not any more.
    fn is_thawed(&self) -> bool {
        !self.held.is_empty() && !freezer::is_frozen()
    }
}

static TASKS: Once<PerCpu<Tasks>> = Once::new();

/// Makes the queues. Boot, once.
pub(crate) fn init(nr_cpus: usize) {
    TASKS.call_once(|| PerCpu::new(nr_cpus, |_| Tasks { ready: RunQueue::new(), held: RunQueue::new() }));
}

fn tasks(cpu: CpuId) -> &'static Tasks {
    TASKS.get().expect("init() runs at boot, before any task or upcall").on(cpu)
}

/// Starts a task on `cpu`. It runs detached until it ends, but for the time in which a suspend is made ready. Context: task or boot.
pub(crate) fn spawn_on(cpu: CpuId, future: impl Future<Output = ()> + Send + 'static) {
    // SAFETY: the future may be sent, so it may be made here and run there.
    unsafe { spawn(cpu, Class::Frozen, future) }
}

/// Starts a task on this CPU, as [`spawn_on`]; its future need not be `Send`, as it never leaves this CPU.
pub(crate) fn spawn_here(future: impl Future<Output = ()> + 'static) {
    // SAFETY: it is run where it was made.
    unsafe { spawn(percpu::current(), Class::Frozen, future) }
}

/// Starts a task of the kernel's own on this CPU, as [`spawn_here`]: one that a suspend needs, that may be in an exchange with the store
/// which is awaited before one, or that answers people. It runs also while all others are frozen, and must not wait for one of them
/// without a limit.
pub(crate) fn spawn_own(future: impl Future<Output = ()> + 'static) {
    // SAFETY: it is run where it was made.
    unsafe { spawn(percpu::current(), Class::Own, future) }
}

/// # Safety
/// The future may run, and be dropped, on `cpu`.
unsafe fn spawn(cpu: CpuId, class: Class, future: impl Future<Output = ()> + 'static) {
    let task = Builder::new().metadata(Meta { link: Link::new(), class });
    // SAFETY: a runnable is run and dropped by `cpu`'s executor alone, to whose queue every wake takes it, and its future
    //   is dropped there: when it ends, or when the last waker is gone and it is scheduled for that. It borrows nothing
    //   ('static), and neither does the function that schedules it, which may be called from anywhere.
    let (runnable, task) = unsafe { task.spawn_unchecked(|_| future, move |runnable| enqueue(cpu, runnable)) };
    task.detach();
    runnable.schedule();
}

/// A task has been woken. Context: any; lock-free.
fn enqueue(cpu: CpuId, task: Task) {
    tasks(cpu).ready.push(task);
    if cpu != percpu::current() {
        cpus::reschedule(cpu);
    }
}

/// Unmasks upcalls for the first time and runs this CPU's tasks for ever.
pub(crate) fn run() -> ! {
    let mine = tasks(percpu::current());
    percpu::start_upcalls();
    let mut ready = mine.ready.take();
    // It has been parked, and has run no task since.
    let mut is_back = false;
    loop {
        match cpus::park_if_asked() {
            AfterPark::NotAsked => {}
            AfterPark::Back => is_back = true,
            AfterPark::Leave => {
                // In a new domain this loop begins anew.
                ready.by_ref().for_each(|task| mine.ready.push(task));
                cpus::leave();
            }
        }
        timer::expire();
        if mine.is_thawed() {
            mine.held.take().for_each(|task| mine.ready.push(task));
        }
        for _ in 0..BATCH {
            if ready.is_empty() {
                ready = mine.ready.take();
            }
            let Some(task) = ready.next() else { break };
            if task.metadata().class == Class::Frozen && freezer::is_frozen() {
                mine.held.push(task);
                continue;
            }
            cpus::note_running();
            if core::mem::take(&mut is_back) {
                trace::mark_here(Mark::FirstTask);
            }
            task.run();
        }
        timer::arm();
        events::get().end_turn(percpu::vcpu_info());
        if ready.is_empty() {
            idle_if_nothing_to_do(mine);
        }
    }
}

/// Runs user mode, or blocks until the next event, unless there is something to do already.
fn idle_if_nothing_to_do(mine: &Tasks) {
    let masked = percpu::mask_upcalls();
    if !has_to_do(mine, &masked) && (freezer::is_frozen() || !user::run_if_any(&masked)) {
        cpus::note_idle();
        masked.block();
    }
}

/// Whether this CPU's loop has anything to do. With upcalls masked none of it can become true unseen: Xen unmasks and looks for pending
/// events in one step, and what other CPUs do for us comes with an event.
fn has_to_do(mine: &Tasks, masked: &Masked) -> bool {
    !mine.ready.is_empty()
        || mine.is_thawed()
        || timer::has_fired(masked)
        || cpus::park_is_asked()
        || events::get().is_any_muted(masked)
}

/// Whether user mode has to be left for this CPU's loop. Context: an upcall from there.
pub(crate) fn is_wanted(masked: &Masked) -> bool {
    freezer::is_frozen() || has_to_do(tasks(percpu::current()), masked)
}

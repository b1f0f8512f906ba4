//! One executor for each CPU: a lock-free queue of tasks that are ready, and the loop that runs them.
//!
//! - A task belongs to one CPU for life. It runs until its next await point and is not preempted but by upcalls.
//! - Waking is lock-free and may happen anywhere: in an upcall, or on another CPU, which then sends an IPI.
//! - Freezing is a property of this loop: a rendezvous is entered here and nowhere else, between two polls. So whatever a
//!   task does without an await in between (a page-table update, a hypercall that takes an mfn) is whole when the domain
//!   is saved.
//!
//! Suspend: everything here is *kept*. Wakes that came as IPIs and got lost with their ports are made up for by each CPU
//! draining its inbox once after it has bound its ports anew.

use core::future::Future;

use async_task::Runnable;
use crossbeam_queue::ArrayQueue;
use percpu::{CpuId, PerCpu};
use spin::Once;
use xen_sys::primitive::sync::atomic::{AtomicUsize, Ordering};

use crate::{cpus, timer};

/// Tasks that one CPU can have. Each is in the queue at most once, so the queue never overflows.
const MAX_TASKS: usize = 64;
/// Tasks polled before timers and rendezvous are looked at again.
const BATCH: usize = 16;

struct Executor {
    ready: ArrayQueue<Runnable>,
    /// Tasks that have been spawned and have not ended.
    live: AtomicUsize,
}

static EXECUTORS: Once<PerCpu<Executor>> = Once::new();

/// Makes the queues. Boot, once.
pub(crate) fn init(nr_cpus: usize) {
    EXECUTORS.call_once(|| {
        PerCpu::new(nr_cpus, |_| Executor { ready: ArrayQueue::new(MAX_TASKS), live: AtomicUsize::new(0) })
    });
}

fn on(cpu: CpuId) -> &'static Executor {
    EXECUTORS.get().expect("init() runs at boot, before any task or upcall").on(cpu)
}

/// A CPU has as many tasks as it can take.
#[derive(Debug)]
pub(crate) struct TooManyTasks;

/// Counts a task as live until it is dropped, wherever its future has got to.
struct Live(&'static Executor);

impl Live {
    fn new(executor: &'static Executor) -> Result<Live, TooManyTasks> {
        // ORDERING: Relaxed, a bound on a count; nothing is read because of it.
        let room = |live: usize| (live < MAX_TASKS).then_some(live + 1);
        executor.live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).map_err(|_| TooManyTasks)?;
        Ok(Live(executor))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // ORDERING: Relaxed, as above.
        self.0.live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Starts a task on `cpu`. It runs detached until it ends. Context: task or boot.
///
/// # Errors
/// [`TooManyTasks`]: the future is dropped.
pub(crate) fn spawn_on(cpu: CpuId, future: impl Future<Output = ()> + Send + 'static) -> Result<(), TooManyTasks> {
    // SAFETY: the future may be sent, so it may be made here and run there.
    unsafe { spawn(cpu, future) }
}

/// Starts a task on this CPU, as [`spawn_on`]; its future need not be `Send`, as it never leaves this CPU.
///
/// # Errors
/// [`TooManyTasks`]: the future is dropped.
pub(crate) fn spawn_here(future: impl Future<Output = ()> + 'static) -> Result<(), TooManyTasks> {
    // SAFETY: it is run where it was made.
    unsafe { spawn(percpu::current(), future) }
}

/// # Safety
/// The future may run, and be dropped, on `cpu`.
unsafe fn spawn(cpu: CpuId, future: impl Future<Output = ()> + 'static) -> Result<(), TooManyTasks> {
    let live = Live::new(on(cpu))?;
    let whole = async move {
        let _live = live;
        future.await;
    };
    // SAFETY: a runnable is run and dropped by `cpu`'s executor alone, to whose queue every wake takes it, and its future
    //   is dropped there: when it ends, or when the last waker is gone and it is scheduled for that. It borrows nothing
    //   ('static), and neither does the function that schedules it, which may be called from anywhere.
    let (runnable, task) = unsafe { async_task::spawn_unchecked(whole, move |runnable| enqueue(cpu, runnable)) };
    task.detach();
    runnable.schedule();
    Ok(())
}

/// A task has been woken. Context: any; lock-free.
fn enqueue(cpu: CpuId, runnable: Runnable) {
    if on(cpu).ready.push(runnable).is_err() {
        // By `Live` there are never more tasks than places, and each is queued at most once.
        unreachable!("run queue of cpu {cpu} overflows");
    }
    if cpu != percpu::current() {
        cpus::reschedule(cpu);
    }
}

/// Unmasks upcalls for the first time and runs this CPU's tasks for ever.
pub(crate) fn run() -> ! {
    let mine = on(percpu::current());
    percpu::start_upcalls();
    loop {
        cpus::park_if_asked();
        timer::expire();
        for _ in 0..BATCH {
            let Some(task) = mine.ready.pop() else { break };
            cpus::note_running();
            task.run();
        }
        timer::arm();
        idle_if_nothing_to_do(mine);
    }
}

/// Blocks until the next event, unless there is something to do already.
fn idle_if_nothing_to_do(mine: &Executor) {
    let masked = percpu::mask_upcalls();
    // With upcalls masked none of these can become true unseen: Xen unmasks and looks for pending events in one step, and
    // what other CPUs do for us comes with an event.
    if mine.ready.is_empty() && !timer::has_fired(&masked) && !cpus::park_is_asked() {
        cpus::note_idle();
        masked.block();
    }
}

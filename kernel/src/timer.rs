//! Timers: a queue of deadlines for each CPU, and the one-shot timer of its vcpu behind it.
//!
//! - Deadlines are guest time, so they mean the same after a migration; they become system time only when the timer is
//!   armed. The queue is *kept* over a suspend, the armed timer *rebuilt*: a restored vcpu has none.
//! - The upcall only notes that the timer fired. Expired sleepers are woken by the CPU's executor between two tasks, so the
//!   queue is touched by task context alone and the upcall neither allocates nor frees.
//! - Xen puts off deadlines that are nearer than its `timer_slop` (50 us).

use alloc::collections::BTreeMap;
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use percpu::{Local, Masked};
use spin::Once;
use xen_sys::hypercall::misc::set_timer_op;
use xen_sys::primitive::sync::atomic::{AtomicBool, Ordering};

use crate::time;

/// Deadline in guest time, then a number that makes it unique.
type Key = (u64, u64);

struct Timers {
    sleepers: RefCell<BTreeMap<Key, Waker>>,
    serial: Cell<u64>,
    /// The deadline that Xen knows of, or `NOT_ARMED`.
    armed_ns: Cell<u64>,
    /// The timer event came. Set in the upcall, cleared by the executor, both on this CPU.
    fired: AtomicBool,
}

const NOT_ARMED: u64 = u64::MAX;

static TIMERS: Once<Local<Timers>> = Once::new();

/// Makes the queues. Boot, once.
pub(crate) fn init(nr_cpus: usize) {
    TIMERS.call_once(|| {
        Local::new(nr_cpus, |_| Timers {
            sleepers: RefCell::new(BTreeMap::new()),
            serial: Cell::new(0),
            armed_ns: Cell::new(NOT_ARMED),
            fired: AtomicBool::new(false),
        })
    });
}

fn with<R>(masked: &Masked, work: impl FnOnce(&Timers) -> R) -> R {
    work(TIMERS.get().expect("init() runs at boot, before any task or upcall").mine(masked))
}

/// VIRQ_TIMER came. Context: upcall.
pub(crate) fn on_event(masked: &Masked) {
    // ORDERING: Relaxed, read by this CPU only.
    with(masked, |timers| timers.fired.store(true, Ordering::Relaxed));
}

/// Whether the timer has fired since the last [`expire`].
pub(crate) fn has_fired(masked: &Masked) -> bool {
    // ORDERING: Relaxed, written by this CPU only.
    with(masked, |timers| timers.fired.load(Ordering::Relaxed))
}

/// For how long Xen has owed this CPU a timer event; 0 where it owes none. Context: task.
pub(crate) fn overdue_ns() -> u64 {
    // First the time: an event that comes with upcalls masked is not seen, however long this vcpu is not run then.
    let now = time::now_ns();
    let masked = percpu::mask_upcalls();
    if has_fired(&masked) { 0 } else { with(&masked, |timers| now.saturating_sub(timers.armed_ns.get())) }
}

/// Wakes every sleeper of this CPU whose time has come. Context: the executor, between tasks.
pub(crate) fn expire() {
    let now = {
        let masked = percpu::mask_upcalls();
        with(&masked, |timers| {
            // ORDERING: Relaxed, this CPU only.
            if timers.fired.swap(false, Ordering::Relaxed) {
                timers.armed_ns.set(NOT_ARMED);
            }
        });
        time::now_ns()
    };
    loop {
        let masked = percpu::mask_upcalls();
        let waker = with(&masked, |timers| {
            let mut sleepers = timers.sleepers.borrow_mut();
            let first = sleepers.first_entry()?;
            (first.key().0 <= now).then(|| first.remove())
        });
        drop(masked);
        match waker {
            Some(waker) => waker.wake(),
            None => return,
        }
    }
}

/// Makes Xen's timer match the first deadline. Costs one hypercall, only where that has changed. Context: the executor.
pub(crate) fn arm() {
    let masked = percpu::mask_upcalls();
    with(&masked, |timers| {
        let Some(first_ns) = timers.sleepers.borrow().keys().next().map(|key| key.0) else { return };
        if first_ns >= timers.armed_ns.get() {
            return;
        }
        timers.armed_ns.set(first_ns);
        // 0 would mean "cancel"; a deadline in the past fires at once.
        set_timer_op(time::to_system_ns(first_ns).max(1)).expect("Xen takes any deadline");
    });
}

/// Forgets what was armed: after a restore Xen has no timer for this vcpu. The next [`arm`] sets it again.
pub(crate) fn forget_armed(masked: &Masked) {
    with(masked, |timers| timers.armed_ns.set(NOT_ARMED));
}

/// Sleeps until guest time `deadline_ns`. Stays on the CPU that it is first polled on, as tasks do.
pub(crate) fn until(deadline_ns: u64) -> Sleep {
    Sleep { deadline_ns, key: None }
}

/// Sleeps for `ns`, counted from now.
pub(crate) fn sleep(ns: u64) -> Sleep {
    until(time::now_ns().saturating_add(ns))
}

/// See [`until`].
pub(crate) struct Sleep {
    deadline_ns: u64,
    key: Option<Key>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if time::now_ns() >= self.deadline_ns {
            self.forget();
            return Poll::Ready(());
        }
        let masked = percpu::mask_upcalls();
        with(&masked, |timers| {
            let deadline_ns = self.deadline_ns;
            let key = *self.key.get_or_insert_with(|| {
                timers.serial.set(timers.serial.get() + 1);
                (deadline_ns, timers.serial.get())
            });
            timers.sleepers.borrow_mut().insert(key, context.waker().clone());
        });
        Poll::Pending
    }
}

impl Sleep {
    fn forget(&mut self) {
        if let Some(key) = self.key.take() {
            let masked = percpu::mask_upcalls();
            with(&masked, |timers| timers.sleepers.borrow_mut().remove(&key));
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.forget();
    }
}

/// What [`within`] answers when time is up first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimeIsUp;

/// `future`, for at most `ns`.
pub(crate) async fn within<T>(ns: u64, future: impl Future<Output = T>) -> Result<T, TimeIsUp> {
    let mut sleep = core::pin::pin!(sleep(ns));
    let mut future = core::pin::pin!(future);
    core::future::poll_fn(|context| {
        if let Poll::Ready(value) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(value));
        }
        sleep.as_mut().poll(context).map(|()| Err(TimeIsUp))
    })
    .await
}

//! `timer-busy`: how late the timer's event is on a vcpu that runs.
//!
//! The deadline goes the way of every sleeping task's, in guest time, through the CPU's queue, and is armed by the executor's own
//! [`timer::arm`]; only who calls that is the bench, which spins where a task would return. The handler of VIRQ_TIMER is chosen
//! at boot, so that only a kernel that runs benches has one that reads the TSC first.

use core::future::Future;
use core::pin::pin;
use core::task::{Context, Waker};

use percpu::Masked;
use xen_sys::primitive::sync::atomic::{AtomicU64, Ordering};

use super::report::Report;
use crate::time::{self, TimeRecord, tsc};
use crate::{events, timer};

const AHEAD_NS: u64 = 1_000_000;

/// When VIRQ_TIMER's handler was entered on this bench's CPU; 0 until it is.
static FIRED_TSC: AtomicU64 = AtomicU64::new(0);

/// What handles VIRQ_TIMER where there are benches. Context: upcall.
pub(crate) fn on_timer(masked: &Masked) {
    let now = tsc();
    if percpu::current() == percpu::CpuId::BOOT {
        // ORDERING: Relaxed, read by the task that this upcall has interrupted.
        FIRED_TSC.store(now, Ordering::Relaxed);
    }
    events::on_timer(masked);
}

/// One deadline, and how late its handler was, in ticks; `None`: it was over before anybody waited for it.
fn once() -> Option<u64> {
    // What fired before is none of ours.
    timer::expire();
    FIRED_TSC.store(0, Ordering::Relaxed); // ORDERING: Relaxed, as in `on_timer`.
    let deadline_ns = time::now_ns() + AHEAD_NS;
    let mut sleep = pin!(timer::until(deadline_ns));
    // Puts it into the queue. There is nobody to wake: this task does not wait, it looks.
    if sleep.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
        return None;
    }
    timer::arm();
    let mut fired = 0;
    while fired == 0 {
        core::hint::spin_loop();
        fired = FIRED_TSC.load(Ordering::Relaxed); // ORDERING: Relaxed, as in `on_timer`.
    }
    let record = TimeRecord::read(&percpu::vcpu_info().time);
    Some(fired.saturating_sub(record.tsc_at(time::to_system_ns(deadline_ns))))
}

/// From a deadline to the first instruction of VIRQ_TIMER's handler.
pub(super) async fn timer_busy(report: &mut Report) {
    // One that lost its processor before the deadline stood in the queue says nothing.
    report.measure(&[], 500, || {
        loop {
            if let Some(late) = once() {
                break late;
            }
        }
    });
    timer::expire();
}

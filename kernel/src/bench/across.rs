//! Benches of events to another vcpu: one at a time, and without pause.
//!
//! Where the TSC is native it is the same on all vcpus, so it may be read here before the send and there in the handler.

use evtchn::Action;
use percpu::Masked;
use xen_sys::primitive::sync::atomic::{AtomicU64, Ordering};

use super::loopback::Loopback;
use super::others::{self, Apart, Others, State};
use super::report::{Field, Report};
use crate::time::{TimeRecord, tsc};

/// How long a storm lasts.
const STORM_NS: u64 = 100_000_000;
const STORMS: u32 = 5;

/// When the handler was entered; 0 until it is.
static HANDLED_TSC: Apart<AtomicU64> = Apart(AtomicU64::new(0));

fn handler(_masked: &Masked, _action: &Action) {
    // ORDERING: Relaxed, the number is all there is.
    HANDLED_TSC.0.store(tsc(), Ordering::Relaxed);
}

/// Its action counts.
fn nothing(_masked: &Masked, _action: &Action) {}

/// From a send here to the handler there.
pub(super) async fn event_other(report: &mut Report) {
    for (state, n) in [(State::Spin, 2000), (State::User, 2000), (State::Idle, 500)] {
        let variant: [Field<'_>; 1] = [("other", &state)];
        let Some(cpu) = others::one() else {
            report.skip(&variant, &others::NONE);
            continue;
        };
        let port = match Loopback::new(1, cpu, handler).await {
            Ok(port) => port,
            Err(why) => {
                report.skip(&variant, &why);
                continue;
            }
        };
        let other = Others::start(state, [cpu].into()).await;
        report.measure(&variant, n, || {
            other.ready();
            HANDLED_TSC.0.store(0, Ordering::Relaxed); // ORDERING: Relaxed, as above.
            let before = tsc();
            port.send();
            let mut handled = 0;
            others::await_that(|| {
                handled = HANDLED_TSC.0.load(Ordering::Relaxed); // ORDERING: Relaxed, as above.
                handled != 0
            });
            handled.saturating_sub(before)
        });
        other.stop().await;
    }
}

/// Sends without pause to a vcpu that has nothing else to do: the time for each event that it has handled. Events that are sent
/// while one is pending are the same event.
pub(super) async fn storm(report: &mut Report) {
    let variant: [Field<'_>; 1] = [("other", &State::Idle)];
    let Some(cpu) = others::one() else { return report.skip(&variant, &others::NONE) };
    let port = match Loopback::new(1, cpu, nothing).await {
        Ok(port) => port,
        Err(why) => return report.skip(&variant, &why),
    };
    let other = Others::start(State::Idle, [cpu].into()).await;
    let lasts = TimeRecord::read(&percpu::vcpu_info().time).ticks(STORM_NS);
    report.measure(&variant, STORMS, || {
        other.ready();
        let (before, start) = (port.count(), tsc());
        let mut elapsed = 0;
        while elapsed < lasts {
            port.send();
            elapsed = tsc().saturating_sub(start);
        }
        // One that did not come to run at all has handled none.
        elapsed / (port.count() - before).max(1)
    });
    other.stop().await;
}

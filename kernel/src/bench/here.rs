//! Benches of one vcpu alone: a hypercall, an event to itself, many at once.

use evtchn::Action;
use percpu::Masked;
use xen_sys::hypercall::version::xen_version;
use xen_sys::primitive::sync::atomic::{AtomicU64, Ordering};

use super::loopback::Loopback;
use super::report::Report;
use crate::time::tsc;

/// Samples of what is over at once.
const MANY: u32 = 2000;

/// When the handler was entered last.
static HANDLED_TSC: AtomicU64 = AtomicU64::new(0);

fn handler(_masked: &Masked, _action: &Action) {
    // ORDERING: Relaxed, read by the task that this upcall has interrupted.
    HANDLED_TSC.store(tsc(), Ordering::Relaxed);
}

/// The cheapest hypercall.
pub(super) async fn null_hypercall(report: &mut Report) {
    report.measure(&[], MANY, || {
        let before = tsc();
        let version = xen_version();
        let after = tsc();
        version.expect("Xen knows its version");
        after.saturating_sub(before)
    });
}

/// From a send to the handler.
pub(super) async fn self_event(report: &mut Report) {
    event(report, |sample| sample.handled.saturating_sub(sample.before)).await;
}

/// From a send, through the handler, back to the instruction behind the send.
pub(super) async fn self_event_return(report: &mut Report) {
    event(report, |sample| sample.after.saturating_sub(sample.before)).await;
}

/// What was seen of one event.
struct Sample {
    before: u64,
    handled: u64,
    after: u64,
}

async fn event(report: &mut Report, ticks: impl Fn(&Sample) -> u64) {
    let port = match Loopback::new(1, percpu::current(), handler).await {
        Ok(port) => port,
        Err(why) => return report.skip(&[], &why),
    };
    let mut sent = port.count();
    report.measure(&[], MANY, || {
        let before = tsc();
        port.send();
        let after = tsc();
        sent += 1;
        // Xen delivers on its way out of the send.
        assert_eq!(port.count(), sent, "an event to this vcpu was not handled within the send");
        let handled = HANDLED_TSC.load(Ordering::Relaxed); // ORDERING: Relaxed, as above.
        ticks(&Sample { before, handled, after })
    });
}

/// So many events at once, for each of them.
pub(super) async fn drain(report: &mut Report) {
    for (k, n) in [(1, MANY), (8, MANY), (64, 500), (256, 200), (1024, 100)] {
        let ports = match Loopback::new(k, percpu::current(), handler).await {
            Ok(ports) => ports,
            Err(why) => {
                report.skip(&[("k", &k)], &why);
                continue;
            }
        };
        let mut sent = ports.count();
        report.measure(&[("k", &k)], n, || {
            let masked = percpu::mask_upcalls();
            ports.send();
            let before = tsc();
            drop(masked);
            sent += k as u64;
            HANDLED_TSC.load(Ordering::Relaxed).saturating_sub(before) / k as u64 // ORDERING: Relaxed, as above.
        });
        assert_eq!(ports.count(), sent, "events of {k} ports were lost or doubled");
    }
}

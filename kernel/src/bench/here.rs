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

/// A matter of seconds; what is awaited is on its way.
const LOOKS_MAX: u32 = 100_000_000;

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

/// Returns once the handler has run as often as was `sent`, which it has at once but for a rare chance: Xen has set the selector's
/// bit for another port's event on another processor, so that it leaves ours to that, and has not yet raised the upcall there. Seen
/// once, with the console's. Whether there was anything to wait for.
fn wait_until_handled(ports: &Loopback, sent: u64) -> bool {
    let mut looks = 0_u32;
    while ports.count() != sent {
        looks += 1;
        assert!(looks < LOOKS_MAX, "of {sent} events {} were handled", ports.count());
        core::hint::spin_loop();
    }
    looks > 0
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
        let mut after = tsc();
        sent += 1;
        if wait_until_handled(&port, sent) {
            after = tsc();
        }
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
            wait_until_handled(&ports, sent);
            HANDLED_TSC.load(Ordering::Relaxed).saturating_sub(before) / k as u64 // ORDERING: Relaxed, as above.
        });
    }
}

//! `bind`: what it costs to bind ports in one multicall, as a vcpu does when it comes to life, where so many are bound already. Xen
//! looks for a free number from 1 on, under a lock of the domain's.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use xen_sys::hypercall::{Batch, evtchn as hypercall};

use super::report::Report;
use crate::time::tsc;

/// Ports in a multicall at most.
const MOST: usize = 8;

/// Ports that are closed when this is dropped.
struct Bound(Vec<u32>);

impl Drop for Bound {
    fn drop(&mut self) {
        for port in self.0.drain(..) {
            hypercall::close(port).expect("Xen closes a port that it has just bound");
        }
    }
}

/// Binds `nr` IPI ports of this vcpu in one multicall, of [`MOST`] at most; how long the hypercall took.
///
/// # Errors
/// Xen's, most often as the domain has no more ports.
fn bind_together(nr: usize, into: &mut Bound) -> Result<u64, String> {
    let mut batch = Batch::<MOST>::new();
    let tokens: Vec<_> =
        (0..nr).map(|_| batch.bind_ipi(percpu::current().vcpu()).expect("no more than it has room for")).collect();
    let before = tsc();
    let results = batch.issue();
    let after = tsc();
    let results = results.map_err(|errno| format!("multicall: {errno}"))?;
    for token in tokens {
        into.0.push(results.port(token).map_err(|errno| format!("bind_ipi: {errno}"))?);
    }
    Ok(after.saturating_sub(before))
}

/// See the head of this file.
pub(super) async fn bind(report: &mut Report) {
    for bound in [0, 256, 1024] {
        let mut there = Bound(Vec::with_capacity(bound));
        let made = (0..bound).try_for_each(|_| bind_together(1, &mut there).map(drop));
        for ports in [1, 3, 5, MOST] {
            let variant: [(&str, &dyn core::fmt::Display); 2] = [("ports", &ports), ("bound", &bound)];
            if let Err(why) = &made {
                report.skip(&variant, why);
                continue;
            }
            report.measure(&variant, 200, || {
                let mut more = Bound(Vec::with_capacity(ports));
                bind_together(ports, &mut more).expect("the domain had room for its first sample")
            });
        }
    }
}

//! Benches of calls: a function run on one other vcpu, or on all of them, until its end has been seen here.

use alloc::vec::Vec;

use percpu::{CpuSet, Masked};
use smp::CallNode;

use super::others::{self, Others, State};
use super::report::{Field, Report};
use crate::cpus;
use crate::relax::Processor;
use crate::time::tsc;

/// A call of one.
pub(super) async fn ipi_call(report: &mut Report) {
    for (state, n) in [(State::Spin, 2000), (State::Idle, 500)] {
        let variant: [Field<'_>; 1] = [("other", &state)];
        let Some(cpu) = others::one() else {
            report.skip(&variant, &others::NONE);
            continue;
        };
        let other = Others::start(state, [cpu].into()).await;
        report.measure(&variant, n, || {
            other.ready();
            let before = tsc();
            let _ = cpus::mail().run_on(cpu, &Processor, |_| ());
            tsc().saturating_sub(before)
        });
        other.stop().await;
    }
}

/// A call of all others.
pub(super) async fn ipi_broadcast(report: &mut Report) {
    for (state, n) in [(State::Spin, 500), (State::Idle, 200)] {
        let vcpus = cpus::nr();
        let variant: [Field<'_>; 2] = [("vcpus", &vcpus), ("other", &state)];
        let others = others::all();
        if others.is_empty() {
            report.skip(&variant, &others::NONE);
            continue;
        }
        let set: CpuSet = others.iter().copied().collect();
        let mut nodes: Vec<CallNode> = others.iter().map(|_| CallNode::new()).collect();
        let other = Others::start(state, others).await;
        report.measure(&variant, n, || {
            other.ready();
            let before = tsc();
            let _ = cpus::mail().run_on_many(&set, &mut nodes, &Processor, &|_: &Masked| ());
            tsc().saturating_sub(before)
        });
        other.stop().await;
    }
}

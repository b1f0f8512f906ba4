//! Benches of calls: a function run on one other vcpu, or on all of them, until its end has been seen here.

use alloc::boxed::Box;
use alloc::vec::Vec;

use percpu::{CpuId, Masked};
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
            cpus::mail().run_on(cpu, &Processor, |_| ());
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
        let cpus = others::all();
        if cpus.is_empty() {
            report.skip(&variant, &others::NONE);
            continue;
        }
        let mut broadcast = Broadcast::to(&cpus);
        let other = Others::start(state, cpus).await;
        report.measure(&variant, n, || {
            other.ready();
            let before = tsc();
            broadcast.call();
            tsc().saturating_sub(before)
        });
        other.stop().await;
    }
}

/// A call for each of some vcpus.
struct Broadcast {
    calls: Vec<(CpuId, &'static CallNode)>,
    pending: Vec<smp::Pending>,
}

impl Broadcast {
    fn to(cpus: &[CpuId]) -> Broadcast {
        let call = |cpu: &CpuId| -> (CpuId, &'static CallNode) { (*cpu, Box::leak(Box::new(CallNode::new()))) };
        Broadcast { calls: cpus.iter().map(call).collect(), pending: Vec::with_capacity(cpus.len()) }
    }

    /// Posts all of them, then waits for all.
    fn call(&mut self) {
        fn nothing(_masked: &Masked, _argument: usize) {}
        for (cpu, node) in &self.calls {
            let pending = cpus::mail().call(*cpu, node, nothing, 0);
            self.pending.push(pending.expect("the end of the last call has been seen"));
        }
        self.pending.drain(..).for_each(|call| call.wait(&Processor));
    }
}

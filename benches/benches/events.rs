//! The guest's own part of an event, against the hosted Xen: taking k pending events out of the 2-level tables, and the
//! inbox.
//!
//! Shape: one thread; k events are delivered, then taken in one upcall. The time is of both together, so a delivery
//! that finds the ports pending already is measured beside it: a lower bound of the fake's share.

use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use evtchn::hosted::{self, Channel, Fake};
use evtchn::{AbiKind, Action, EndOfEvent, Events, Handlers, Ipi, Upcall, Virq};
use percpu::{CpuId, Masked};
use smp::{Inbox, Kind};

fn nothing(_: &Masked) {}

fn count(_: &Masked, action: &Action) {
    black_box(action.context());
}

const HANDLERS: Handlers = Handlers::new().virq(Virq::TIMER, nothing).ipi(Ipi::Call, nothing);

/// A domain of one CPU with `k` device ports, and their numbers.
fn domain(abi: AbiKind, k: usize) -> (Fake, Events<Fake>, Vec<u32>) {
    let xen = Fake::new(1);
    let events = hosted::boot(&xen, abi, HANDLERS);
    xen.place(CpuId::BOOT);
    hosted::bring_up(&events, &xen).expect("the fake has ports enough");
    let ports = (0..k).map(|n| {
        let nr = xen.allocate(Channel::Device(CpuId::BOOT)).expect("the fake has ports enough");
        let action = Action::new(EndOfEvent::AtOnce, n, count);
        events.bind_device(hosted::nr(nr), CpuId::BOOT, &action).expect("a new port can be bound");
        nr
    });
    let ports = ports.collect();
    (xen, events, ports)
}

fn drain(criterion: &mut Criterion) {
    let _on = percpu::hosted::enter(CpuId::BOOT);
    let masked = hosted::masked();
    for abi in [AbiKind::TwoLevel, AbiKind::Fifo] {
        drain_with(abi, &masked, &mut criterion.benchmark_group(format!("evtchn_{abi}")));
    }
}

fn drain_with(abi: AbiKind, masked: &Masked, group: &mut BenchmarkGroup<'_, WallTime>) {
    for k in [1, 8, 64] {
        let (xen, events, ports) = domain(abi, k);
        let deliver = || {
            ports.iter().for_each(|nr| {
                black_box(xen.raise(*nr));
            })
        };
        // Once, that what is measured is k events; the first upcall also has the one that placing the vcpu_info left.
        deliver();
        assert_eq!(
            events.demux(masked, xen.flags(CpuId::BOOT)),
            Upcall::Handled(u32::try_from(k).expect("64 at most"))
        );
        group.throughput(Throughput::Elements(k as u64));
        group.bench_function(BenchmarkId::new("deliver_again", k), |bencher| {
            bencher.iter(&deliver);
        });
        group.bench_function(BenchmarkId::new("deliver_and_demux", k), |bencher| {
            bencher.iter(|| {
                deliver();
                events.demux(masked, xen.flags(CpuId::BOOT))
            });
        });
    }
}

fn inbox(criterion: &mut Criterion) {
    let _on = percpu::hosted::enter(CpuId::BOOT);
    let masked = hosted::masked();
    let inbox = Inbox::new();
    criterion.bench_function("inbox/post_and_take", |bencher| {
        bencher.iter(|| {
            let posted = inbox.post(Kind::Reschedule);
            let taken = inbox.take(&masked);
            black_box((posted, taken.kinds))
        });
    });
}

criterion_group!(benches, drain, inbox);
criterion_main!(benches);

//! Every vcpu beats by timer and sends numbered IPIs to the next one, which checks the numbers. Once a second vcpu 0 tells
//! how it went.
//!
//! - A beat is a timer event that this vcpu has taken; its call to the next vcpu is an IPI, run in the upcall there.
//! - A number that is left out is *lost*, the same one again is *doubled*, a lower one is *reordered*. An IPI that is not
//!   run within [`LATE_BEATS`] beats of its sender counts as lost once. Beats, not time: a suspended sender does not beat.
//! - The gap is what a task on the vcpu sees between two beats, suspends included.

use alloc::boxed::Box;
use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::Poll;

use percpu::{CpuId, Masked, PerCpu};
use smp::{CallNode, Pending};
use spin::Once;
use xen_sys::primitive::sync::atomic::{AtomicU64, Ordering};

use crate::{cpus, executor, time, timer};

/// Between two beats of a vcpu, for each vcpu that the domain has: 100 beats a second with 8 vcpus, 6 with 128. All together make
/// no more than 800 beats and as many IPIs a second, which two emulated processors can carry.
const BEAT_NS_PER_VCPU: u64 = 1_250_000;
/// Bounds of that: a lone vcpu beats 100 times a second, and each of a thousand still four times.
const BEAT_NS: core::ops::RangeInclusive<u64> = 10_000_000..=250_000_000;
const REPORT_NS: u64 = 1_000_000_000;
/// An IPI that was not run for so many beats of its sender counts as lost: 10 s and more.
const LATE_BEATS: u32 = 1000;

/// Bits of a call's argument that carry the sequence number; above them stands the sender.
const SEQUENCE_BITS: u32 = 48;

/// One vcpu's numbers. Suspend: *kept*.
#[derive(Default)]
struct Beat {
    /// Since boot. Written by its CPU.
    beats: AtomicU64,
    /// Largest gap since the last report. Written by its CPU, taken by vcpu 0.
    max_gap_ns: AtomicU64,
    /// Number of the last IPI that came. Written by its CPU, in upcalls.
    received: AtomicU64,
    /// Written by its CPU.
    lost: AtomicU64,
    doubled: AtomicU64,
    reordered: AtomicU64,
}

static BEATS: Once<PerCpu<Beat>> = Once::new();

fn beats() -> &'static PerCpu<Beat> {
    BEATS.get().expect("start() comes before the tasks and calls that ask")
}

/// Starts the tasks.
pub(super) fn start() {
    BEATS.call_once(|| PerCpu::new(cpus::nr(), |_| Beat::default()));
    for cpu in CpuId::first(cpus::nr()) {
        executor::spawn_on(cpu, beat(cpu)).expect("a CPU has room for the workload's few tasks");
    }
    executor::spawn_on(CpuId::BOOT, report()).expect("a CPU has room for the workload's few tasks");
}

async fn beat(cpu: CpuId) {
    let mine = beats().on(cpu);
    let next = CpuId::new((cpu.index() + 1) % cpus::nr()).expect("below the number of CPUs");
    let node: &'static CallNode = Box::leak(Box::new(CallNode::new()));
    let mut in_flight: Option<(Pending, u32)> = None;
    let mut sequence = 0;
    let period_ns = (BEAT_NS_PER_VCPU * cpus::nr() as u64).clamp(*BEAT_NS.start(), *BEAT_NS.end());
    let mut last = time::now_ns();
    loop {
        timer::until(last + period_ns).await;
        let now = time::now_ns();
        // ORDERING: Relaxed, statistics; the sum is read by vcpu 0 whenever it likes.
        mine.max_gap_ns.fetch_max(now - last, Ordering::Relaxed);
        mine.beats.fetch_add(1, Ordering::Relaxed);
        last = now;

        if let Some((pending, waited)) = &mut in_flight {
            *waited += 1;
            if *waited == LATE_BEATS {
                mine.lost.fetch_add(1, Ordering::Relaxed); // ORDERING: Relaxed, statistic only.
            }
            if !is_over(pending).await {
                continue;
            }
        }
        // The node is free once its last call's end has been seen.
        drop(in_flight.take());
        sequence += 1;
        let argument = cpu.index() << SEQUENCE_BITS | sequence;
        in_flight = cpus::mail().call(next, node, received, argument).ok().map(|pending| (pending, 0));
        if in_flight.is_none() {
            sequence -= 1;
        }
    }
}

/// Whether a call has been run; looks, and does not wait.
async fn is_over(pending: &mut Pending) -> bool {
    poll_fn(|context| Poll::Ready(Pin::new(&mut *pending).poll(context).is_ready())).await
}

/// An IPI of the vcpu before this one. Context: upcall.
fn received(_masked: &Masked, argument: usize) {
    let mine = beats().mine();
    let number = (argument & ((1 << SEQUENCE_BITS) - 1)) as u64;
    // ORDERING: Relaxed, all of them: only upcalls of this CPU write, and vcpu 0 reads for statistics.
    let last = mine.received.load(Ordering::Relaxed);
    if number == last {
        mine.doubled.fetch_add(1, Ordering::Relaxed);
    } else if number < last {
        mine.reordered.fetch_add(1, Ordering::Relaxed);
    } else {
        mine.lost.fetch_add(number - last - 1, Ordering::Relaxed);
        mine.received.store(number, Ordering::Relaxed);
    }
}

/// What all vcpus did since the last report.
#[derive(Default)]
struct Summary {
    beating: usize,
    beats_min: u64,
    max_gap_ns: u64,
    wrong: u64,
}

impl Summary {
    fn take(before: &mut [u64]) -> Summary {
        let mut sum = Summary { beats_min: u64::MAX, ..Summary::default() };
        for ((_, beat), before) in beats().iter().zip(before) {
            // ORDERING: Relaxed, statistics.
            let total = beat.beats.load(Ordering::Relaxed);
            let new = total - *before;
            *before = total;
            sum.beating += usize::from(new != 0);
            sum.beats_min = sum.beats_min.min(new);
            sum.max_gap_ns = sum.max_gap_ns.max(beat.max_gap_ns.swap(0, Ordering::Relaxed));
            sum.wrong += [&beat.lost, &beat.doubled, &beat.reordered]
                .map(|count| count.load(Ordering::Relaxed))
                .iter()
                .sum::<u64>();
        }
        sum
    }
}

async fn report() {
    let mut before = alloc::vec![0; cpus::nr()];
    let mut next = time::now_ns() + REPORT_NS;
    for seq in 1_u64.. {
        timer::until(next).await;
        // From now on, not from when it should have been: a suspend is no reason to report twice at once.
        next = time::now_ns() + REPORT_NS;
        let sum = Summary::take(&mut before);
        crate::say!(
            "heartbeat",
            seq = seq,
            vcpus = sum.beating,
            beats_min = sum.beats_min,
            max_gap_ns = sum.max_gap_ns,
            lost = sum.wrong,
        );
        if sum.wrong != 0 {
            crate::note!(Warn, "events: {}", Wrong);
        }
    }
}

/// Which vcpus have lost, doubled or reordered what.
struct Wrong;

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (cpu, beat) in beats().iter() {
            // ORDERING: Relaxed, statistics.
            let [lost, doubled, reordered] =
                [&beat.lost, &beat.doubled, &beat.reordered].map(|count| count.load(Ordering::Relaxed));
            if lost + doubled + reordered != 0 {
                write!(f, "vcpu {cpu} lost {lost} doubled {doubled} reordered {reordered}; ")?;
            }
        }
        Ok(())
    }
}

//! Every vcpu beats by timer and sends numbered IPIs to the next one, which checks the numbers. Once a second vcpu 0 tells
//! how it went.
//!
//! - A beat is a timer event that this vcpu has taken; its calls to the next vcpu are IPIs, run in the upcall there. Up to
//!   [`IN_FLIGHT`] are under way at once, so that their order means something.
//! - `lost=` is all that `numbers.rs` knows to be wrong. An IPI that is not run is known after a few beats of the vcpu that should have
//!   run it: a second with 100 vcpus, two with a thousand. So whoever wants to know whether a suspend has cost an IPI reads one heartbeat
//!   that may be half over, and one more for each second of that.
//! - The gap is what a task on the vcpu sees between two beats, suspends included; not the time that it was down.
//! - A vcpu that is down does not beat and is not counted. The one before it has nobody to send to meanwhile, the one after it
//!   hears of nobody: what a call found down was never sent, and has no number.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::Poll;

use arrayvec::ArrayVec;
use percpu::{CpuId, Masked, PerCpu};
use smp::{CallNode, NotPosted, Pending};
use spin::Once;
use xen_sys::primitive::sync::atomic::{AtomicU64, Ordering};

use super::numbers::{Age, Received, Stall, Wrongs};
use crate::{cpus, executor, time, timer};

/// Between two beats of a vcpu, for each vcpu that the domain has: 100 beats a second with 8 vcpus, 6 with 128. All together make
/// no more than 800 beats and as many IPIs a second, which two emulated processors can carry.
const BEAT_NS_PER_VCPU: u64 = 1_250_000;
/// Bounds of that: a lone vcpu beats 100 times a second, and each of a thousand still four times.
const BEAT_NS: core::ops::RangeInclusive<u64> = 10_000_000..=250_000_000;
const REPORT_NS: u64 = 1_000_000_000;
/// Calls of one vcpu that are under way.
const IN_FLIGHT: usize = 4;

/// Bits of a call's argument that carry the sequence number; above them stands the sender.
const SEQUENCE_BITS: u32 = 48;

/// One vcpu's numbers. Suspend: *kept*.
#[derive(Default)]
struct Beat {
    /// Since boot. Written by its CPU.
    beats: AtomicU64,
    /// Largest gap since the last report. Written by its CPU, taken by vcpu 0.
    max_gap_ns: AtomicU64,
    received: Received,
    wrongs: Wrongs,
}

static BEATS: Once<PerCpu<Beat>> = Once::new();

fn beats() -> &'static PerCpu<Beat> {
    BEATS.get().expect("start_beating() comes before the tasks and calls that ask")
}

/// Starts the tasks.
pub(super) fn start() {
    start_beating();
    executor::spawn_on(CpuId::BOOT, report());
}

/// Starts all tasks but the one that reports. Once.
pub(crate) fn start_beating() {
    BEATS.call_once(|| PerCpu::new(cpus::nr(), |_| Beat::default()));
    for cpu in CpuId::first(cpus::nr()) {
        executor::spawn_on(cpu, beat(cpu));
    }
}

/// What is wrong on all vcpus, and the beats of the one that has had the fewest.
pub(crate) fn wrong_and_beats_racy() -> (u64, u64) {
    // ORDERING: Relaxed, statistics.
    let beats_min = beats().iter().map(|(_, beat)| beat.beats.load(Ordering::Relaxed)).min().unwrap_or(0);
    (beats().iter().map(|(_, beat)| beat.wrongs.total()).sum(), beats_min)
}

/// A call that has been sent.
struct Sent {
    pending: Pending,
    node: &'static CallNode,
    age: Age,
}

/// Takes those out that have been run. How many of those that are left were sent before one of them.
async fn take_ended(sent: &mut ArrayVec<Sent, IN_FLIGHT>, idle: &mut ArrayVec<&'static CallNode, IN_FLIGHT>) -> usize {
    // Calls to one CPU end in order; so up to here all should have ended.
    let mut last_ended = 0;
    let mut place = 0;
    while let Some(one) = sent.get_mut(place) {
        if is_over(&mut one.pending).await {
            // The node is free once its call's end has been seen.
            idle.push(sent.remove(place).node);
            last_ended = place;
        } else {
            place += 1;
        }
    }
    last_ended
}

async fn beat(cpu: CpuId) {
    let mine = beats().on(cpu);
    let next = CpuId::new((cpu.index() + 1) % cpus::nr()).expect("below the number of CPUs");
    let period_ns = (BEAT_NS_PER_VCPU * cpus::nr() as u64).clamp(*BEAT_NS.start(), *BEAT_NS.end());
    let mut idle: ArrayVec<&'static CallNode, IN_FLIGHT> =
        (0..IN_FLIGHT).map(|_| &*Box::leak(Box::new(CallNode::new()))).collect();
    let mut sent: ArrayVec<Sent, IN_FLIGHT> = ArrayVec::new();
    let mut stall = Stall::default();
    // ORDERING: Relaxed, a count that only grows. One that is read too low makes a call late later.
    let beats_of_next = || beats().on(next).beats.load(Ordering::Relaxed);
    let mut sequence = 0;
    let mut changes = cpus::changes(cpu);
    let mut last = time::now_ns();
    loop {
        timer::until(last + period_ns).await;
        let now = time::now_ns();
        let changes_before = core::mem::replace(&mut changes, cpus::changes(cpu));
        if changes == changes_before {
            // ORDERING: Relaxed, statistics; the sum is read by vcpu 0 whenever it likes.
            mine.max_gap_ns.fetch_max(now - last, Ordering::Relaxed);
        }
        // ORDERING: Relaxed, as above.
        mine.beats.fetch_add(1, Ordering::Relaxed);
        last = now;

        let nr_idle = idle.len();
        let overtaken = take_ended(&mut sent, &mut idle).await;
        let under_way = sent.iter_mut().enumerate().map(|(place, one)| (&mut one.age, place < overtaken));
        stall.look(idle.len() != nr_idle, beats_of_next(), under_way, &mine.wrongs);

        let Some(node) = idle.pop() else { continue };
        let argument = cpu.index() << SEQUENCE_BITS | (sequence + 1);
        match cpus::mail().call(next, node, received, argument) {
            Ok(pending) => {
                sequence += 1;
                sent.push(Sent { pending, node, age: Age::new(beats_of_next()) });
            }
            // It is down. Not busy: its end has been seen.
            Err(NotPosted::Down | NotPosted::Busy) => idle.push(node),
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
    let before = (percpu::current().index() + cpus::nr() - 1) % cpus::nr();
    let number = (argument & ((1 << SEQUENCE_BITS) - 1)) as u64;
    mine.received.take(argument >> SEQUENCE_BITS, before, number, &mine.wrongs);
}

/// What is remembered of a vcpu from one report to the next.
#[derive(Clone, Copy, Default)]
struct Before {
    beats: u64,
    changes: u32,
}

/// What all vcpus did since the last report.
#[derive(Default)]
struct Summary {
    /// Those that are up, but for those that were all the time and have not beaten.
    beating: usize,
    /// Of those that were up all the time.
    beats_min: u64,
    max_gap_ns: u64,
    wrong: u64,
}

impl Summary {
    fn take(before: &mut [Before]) -> Summary {
        let mut sum = Summary { beats_min: u64::MAX, ..Summary::default() };
        for ((cpu, beat), before) in beats().iter().zip(before) {
            // ORDERING: Relaxed, statistics.
            let now = Before { beats: beat.beats.load(Ordering::Relaxed), changes: cpus::changes(cpu) };
            let new = now.beats - before.beats;
            let was_up = now.changes == before.changes;
            *before = now;
            if cpus::is_up(cpu) {
                sum.beating += usize::from(new != 0 || !was_up);
                if was_up {
                    sum.beats_min = sum.beats_min.min(new);
                }
            }
            sum.max_gap_ns = sum.max_gap_ns.max(beat.max_gap_ns.swap(0, Ordering::Relaxed));
            sum.wrong += beat.wrongs.total();
        }
        sum
    }
}

async fn report() {
    let mut before: Vec<Before> =
        CpuId::first(cpus::nr()).map(|cpu| Before { beats: 0, changes: cpus::changes(cpu) }).collect();
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
            crate::note!(Warn, "events: {Wrong}");
        }
    }
}

/// Which vcpus have seen what go wrong.
struct Wrong;

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (cpu, beat) in beats().iter().filter(|(_, beat)| beat.wrongs.total() != 0) {
            write!(f, "vcpu {cpu}")?;
            for (name, count) in beat.wrongs.all().into_iter().filter(|(_, count)| *count != 0) {
                write!(f, " {name} {count}")?;
            }
            f.write_str("; ")?;
        }
        Ok(())
    }
}

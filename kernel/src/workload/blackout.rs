//! What a suspend costs a task, and how long it takes to stop all others: `workload=blackout`.
//!
//! First, while nothing else runs, vcpu 0 stops all others again and again and lets them go (`stop-machine`). Then a task on each
//! vcpu reads the TSC, sleeps for [`PERIOD_NS`] by timer, and reads again; it keeps the largest gap between two readings. After
//! each suspend vcpu 0 tells the gaps of all since the request, and how long the hypercall took:
//!
//! ```text
//! stasis: stop-machine vcpus= n= unit=cycles tsc=native stopped_min= stopped_p50= stopped_max= whole_min= whole_p50= whole_max=
//! stasis: blackout-ready vcpus= period_ns=
//! stasis: blackout-gaps first=0 gaps=TICKS,TICKS,…
//! stasis: blackout outcome=resumed|continued vcpus= unit=cycles tsc=native prepare= held= resume= max=
//! ```
//!
//! All are ticks of the TSC, as guest time need not count what another guest's clock counts: Linux' monotonic clock stands still
//! over a suspend, and ours goes by Xen's wall clock, while the TSC of one host goes on for every guest that reads it natively. So
//! these figures mean something only where `tsc=native`, and where the domain came back on the same host.
//!
//! The task sleeps and does not spin: with more vcpus than processors a task that spins sees mostly Xen's time slices, and most of
//! what it loses is not the suspend's. The module for Linux as a guest does the same, by one-shot timer too, and tells the same lines.
//!
//! A vcpu that is down when it is told is not waited for, and its gap is 0; the time that one was down is no gap of its.
//!
//! `stopped` is from the call until all others are stopped; `whole` until the call returns, when they have been told to go on.

use alloc::vec::Vec;
use core::fmt;

use percpu::{CpuId, PerCpu};
use smp::Outcome;
use spin::Once;
use xen_sys::primitive::sync::atomic::{AtomicU64, Ordering};

use super::Over;
use crate::logfmt::Line;
use crate::time::{self, TimeRecord};
use crate::{console, cpus, executor, timer};

/// Between two readings.
const PERIOD_NS: u64 = 200_000;
/// Rendezvous that are measured, and the time after which no more of them begins.
const STOPS: usize = 30;
const STOPS_NS: u64 = 30_000_000_000;
/// Between two of them: the others have fallen asleep by then.
const BETWEEN_NS: u64 = 2_000_000;
/// Readings of each vcpu after a suspend before its gap is told.
const READINGS_AFTER: u64 = 2;
/// How often vcpu 0 looks whether these have come.
const LOOK_NS: u64 = 5_000_000;
/// Gaps in a line.
const PER_LINE: usize = 32;

/// One vcpu's readings. Suspend: *kept*.
struct Reader {
    /// Largest gap since the last request. Raised by its CPU, cleared by vcpu 0.
    most: AtomicU64,
    /// Since boot. Written by its CPU.
    readings: AtomicU64,
}

static READERS: Once<PerCpu<Reader>> = Once::new();

/// Starts the task that measures the rendezvous, and then the readers.
pub(super) fn start() {
    executor::spawn_on(CpuId::BOOT, async {
        stop_machine().await;
        READERS
            .call_once(|| PerCpu::new(cpus::nr(), |_| Reader { most: AtomicU64::new(0), readings: AtomicU64::new(0) }));
        for cpu in CpuId::first(cpus::nr()) {
            executor::spawn_on(cpu, read(cpu));
        }
        crate::say!("blackout-ready", vcpus = cpus::nr(), period_ns = PERIOD_NS);
    });
}

async fn stop_machine() {
    let end_ns = time::now_ns() + STOPS_NS;
    let (mut stopped, mut whole) = (Vec::with_capacity(STOPS), Vec::with_capacity(STOPS));
    while stopped.len() < STOPS && (stopped.is_empty() || time::now_ns() < end_ns) {
        timer::sleep(BETWEEN_NS).await;
        let before = time::tsc();
        match cpus::rendezvous(|_, _| (Outcome::Cancelled, time::tsc())) {
            Ok(there) => {
                whole.push(time::tsc().saturating_sub(before));
                stopped.push(there.saturating_sub(before));
            }
            Err(missing) => {
                crate::say!("stop-machine-error", missing = missing.cpus);
                return;
            }
        }
    }
    let mut line = Line::new("stop-machine");
    line.field("vcpus", &cpus::nr());
    line.field("n", &stopped.len());
    unit(&mut line);
    for (of, ticks) in [("stopped", &mut stopped), ("whole", &mut whole)] {
        ticks.sort_unstable();
        let (least, most) = (ticks.first(), ticks.last());
        for (what, value) in [("min", least), ("p50", ticks.get(ticks.len() / 2)), ("max", most)] {
            line.fields(format_args!("{of}_{what}={}", value.copied().unwrap_or(0)));
        }
    }
    console::print(&line);
}

async fn read(cpu: CpuId) {
    let mine = READERS.get().expect("start() has made them").on(cpu);
    let mut changes = cpus::changes(cpu);
    let mut last = time::tsc();
    loop {
        timer::sleep(PERIOD_NS).await;
        let now = time::tsc();
        let changes_before = core::mem::replace(&mut changes, cpus::changes(cpu));
        if changes == changes_before {
            // ORDERING: Relaxed both, read by vcpu 0 after the next reading's count at the earliest; one that it clears just now is
            //   of before the request.
            mine.most.fetch_max(now.saturating_sub(last), Ordering::Relaxed);
        }
        // ORDERING: Release, pairs with the Acquire in `tell`: who has seen the count sees the gap before it.
        mine.readings.fetch_add(1, Ordering::Release);
        last = now;
    }
}

/// A suspend has been asked for: gaps count from here. Context: vcpu 0.
pub(super) fn suspend_is_asked() {
    let Some(readers) = READERS.get() else { return };
    for (_, reader) in readers.iter() {
        // ORDERING: Relaxed, as in `read`.
        reader.most.store(0, Ordering::Relaxed);
    }
}

/// A suspend is over, and every vcpu is alive. Context: vcpu 0.
pub(super) fn suspend_is_over(over: Over) {
    if READERS.get().is_some() {
        executor::spawn_on(CpuId::BOOT, tell(over));
    }
}

async fn tell(over: Over) {
    let readers = READERS.get().expect("its caller looks");
    // ORDERING: Acquire, pairs with the Release in `read`.
    let readings = |reader: &Reader| reader.readings.load(Ordering::Acquire);
    let before: Vec<u64> = readers.iter().map(|(_, reader)| readings(reader)).collect();
    let is_awaited =
        |cpu: CpuId, reader: &Reader, before: u64| cpus::is_up(cpu) && readings(reader) < before + READINGS_AFTER;
    while readers.iter().zip(&before).any(|((cpu, reader), before)| is_awaited(cpu, reader, *before)) {
        timer::sleep(LOOK_NS).await;
    }
    // ORDERING: Relaxed, as in `read`.
    let gaps: Vec<u64> = readers.iter().map(|(_, reader)| reader.most.load(Ordering::Relaxed)).collect();
    for (nr, part) in gaps.chunks(PER_LINE).enumerate() {
        let mut line = Line::new("blackout-gaps");
        line.field("first", &(nr * PER_LINE));
        line.field("gaps", &List(part));
        console::print(&line);
    }
    let clock = TimeRecord::read(&percpu::vcpu_info().time);
    let mut line = Line::new("blackout");
    line.field("outcome", &if over.outcome == Outcome::Resumed { "resumed" } else { "continued" });
    line.field("vcpus", &gaps.len());
    unit(&mut line);
    line.field("prepare", &clock.ticks(over.prepare_ns));
    line.field("held", &over.held_ticks);
    line.field("resume", &clock.ticks(over.resume_ns));
    line.field("max", &gaps.iter().max().copied().unwrap_or(0));
    console::print(&line);
}

/// In which unit, and whether it can be believed.
fn unit(line: &mut Line) {
    line.field("unit", &"cycles");
    line.field("tsc", &if time::tsc_is_emulated() { "emulated" } else { "native" });
}

/// Numbers with commas between.
struct List<'a>(&'a [u64]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nr, ticks) in self.0.iter().enumerate() {
            let separator = if nr == 0 { "" } else { "," };
            write!(f, "{separator}{ticks}")?;
        }
        Ok(())
    }
}

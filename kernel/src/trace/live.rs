//! The rings of this kernel, where marks go, and the task that tells of them.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;

use percpu::{CpuId, Local, Masked};
use smp::Outcome;
use smp::trace::{Mark, Stage, Trace};
use spin::Once;

use super::table::{KEPT, Longest, Suspend, Suspends};
use crate::logfmt::Line;
use crate::time::{Scale, tsc};
use crate::{console, control, timer, wait};

/// How long vcpus get to find their first task before a suspend is told of without being asked for.
const SETTLE_NS: u64 = 100_000_000;

static TRACE: Once<Kept> = Once::new();

/// There may be something to do for [`task`].
static NEWS: wait::Flag = wait::Flag::new();
/// Somebody wants to hear of suspends that have not been told of, or of the last one again.
static ASKED: wait::Flag = wait::Flag::new();

struct Kept {
    rings: Trace,
    /// What vcpu 0 knows of the last suspends. Reached by it alone. Suspend: *kept*.
    suspends: Local<RefCell<Suspends>>,
    tell: bool,
}

/// Makes the rings. Boot, once.
pub(crate) fn init(nr_cpus: usize, choice: boot::Trace) {
    if choice != boot::Trace::Off {
        TRACE.call_once(|| Kept {
            rings: Trace::new(nr_cpus),
            suspends: Local::new(1, |_| RefCell::default()),
            tell: choice == boot::Trace::Suspend,
        });
    }
}

/// This CPU has reached `mark`. Context: any but between a follower's acknowledgement and its release; lock-free. Cost:
/// see [`super`].
#[inline(never)]
pub(crate) fn mark(masked: &Masked, mark: Mark) {
    if let Some(kept) = TRACE.get() {
        kept.rings.mark(masked, mark, tsc());
    }
}

/// The same, when the TSC was `tsc`.
#[inline(never)]
pub(crate) fn mark_at(masked: &Masked, mark: Mark, tsc: u64) {
    if let Some(kept) = TRACE.get() {
        kept.rings.mark(masked, mark, tsc);
    }
}

/// The same, in a task.
pub(crate) fn mark_here(what: Mark) {
    mark(&percpu::mask_upcalls(), what);
}

/// The IPI of a rendezvous came. Context: upcall, or a vcpu that parks and looks into its inbox.
pub(crate) fn kicked(masked: &Masked) {
    if let Some(kept) = TRACE.get()
        && kept.rings.join(masked)
    {
        mark(masked, Mark::Kicked);
    }
}

/// This CPU is about to wait in a rendezvous. Context: its executor.
pub(crate) fn parked(masked: &Masked) {
    if let Some(kept) = TRACE.get() {
        kept.rings.join(masked);
        mark(masked, Mark::Parked);
    }
}

/// This CPU comes to life, and not from a suspend.
pub(crate) fn apart(masked: &Masked) {
    if let Some(kept) = TRACE.get() {
        kept.rings.leave(masked);
    }
}

/// A suspend begins; it was asked for at guest time `seen_ns`. Context: vcpu 0, in a task.
pub(crate) fn begin(seen_ns: u64) {
    let Some(kept) = TRACE.get() else { return };
    let masked = percpu::mask_upcalls();
    let number = kept.rings.begin(&masked);
    let scale = Scale::now();
    mark_at(&masked, Mark::Asked, scale.tsc_at(seen_ns));
    mark(&masked, Mark::Answered);
    kept.suspends.mine(&masked).borrow_mut().begin(number, seen_ns, scale);
}

/// The rendezvous of the suspend is next. Context: vcpu 0.
pub(crate) fn gather(masked: &Masked) {
    if let Some(kept) = TRACE.get() {
        kept.rings.gather(masked);
    }
}

/// Does `other`, a rendezvous that is no suspend's. Context: vcpu 0.
pub(crate) fn aside<T>(other: impl FnOnce() -> T) -> T {
    match TRACE.get() {
        Some(kept) => kept.rings.aside(other),
        None => other(),
    }
}

/// The hypercall is next: it is `tsc`, which `before` reads. Context: vcpu 0, all others parked.
pub(crate) fn suspending(masked: &Masked, before: Scale, tsc: u64) {
    let Some(kept) = TRACE.get() else { return };
    kept.suspends.mine(masked).borrow_mut().with_last(|suspend| suspend.before = before);
    mark_at(masked, Mark::Suspending, tsc);
}

/// The rendezvous is over; `after` reads what was marked since the hypercall. Context: vcpu 0.
pub(crate) fn came_back(masked: &Masked, outcome: Outcome, after: Scale) {
    let Some(kept) = TRACE.get() else { return };
    kept.suspends.mine(masked).borrow_mut().with_last(|suspend| suspend.after = Some((after, outcome)));
}

/// A suspend is over, or has been given up. What is to be told of it is told by [`task`]: the next request waits for none of that.
/// Context: vcpu 0, in a task.
pub(crate) fn end() {
    let Some(kept) = TRACE.get() else { return };
    kept.rings.end();
    if kept.tell {
        ask();
    }
    NEWS.set();
}

/// Writes the longest times of suspend `number` under `data/stasis/`, unless it was given up.
async fn publish(kept: &Kept, number: u64) {
    let Some(suspend) = remembered(kept, number).filter(|suspend| suspend.after.is_some()) else { return };
    let longest = longest(kept, &suspend);
    let mut facts: Vec<(String, u64)> = Vec::new();
    // A vcpu may have had nothing to do yet.
    for (stage, time) in longest.stages().filter(|(stage, _)| *stage != Stage::Resume) {
        facts.push((format!("stage_{stage}_ns"), time.most_ns));
        facts.push((format!("stage_{stage}_vcpu"), time.most_on.vcpu().into()));
    }
    let facts: Vec<(&str, u64)> = facts.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    control::publish(&facts).await;
}

/// Has the last suspend told on the console. Context: any; lock-free.
pub(crate) fn ask() {
    ASKED.set();
    NEWS.set();
}

/// Writes what belongs in xenstore after each suspend, and tells of suspends whenever it is asked to: of all that it has not told
/// of and that are still there, or else of the last.
pub(crate) async fn task() {
    let (mut published, mut told) = (0, 0);
    loop {
        NEWS.wait().await;
        let Some(kept) = TRACE.get() else {
            crate::say!("phases", suspend = 0, outcome = "untraced");
            continue;
        };
        let last = kept.rings.last_over();
        if last > published {
            published = last;
            publish(kept, last).await;
        }
        if ASKED.take() {
            told = tell_since(kept, told).await;
        }
    }
}

/// Tells of the suspends after number `told`; returns the number of the last.
async fn tell_since(kept: &Kept, told: u64) -> u64 {
    if kept.tell {
        timer::sleep(SETTLE_NS).await;
    }
    let last = kept.rings.last_over();
    if last == 0 {
        crate::say!("phases", suspend = 0, outcome = "none");
        return last;
    }
    let first = last.min((told + 1).max(last.saturating_sub(KEPT as u64 - 1)));
    for number in first..=last {
        tell(kept, number).await;
    }
    last
}

fn remembered(kept: &Kept, number: u64) -> Option<Suspend> {
    let masked = percpu::mask_upcalls();
    let suspends = kept.suspends.mine(&masked).borrow();
    suspends.get(number).copied()
}

fn longest(kept: &Kept, suspend: &Suspend) -> Longest {
    let mut longest = Longest::default();
    let released_ns = released_ns(kept, suspend);
    for cpu in CpuId::first(kept.rings.nr()) {
        if let Some(record) = kept.rings.record(cpu, suspend.number) {
            longest.add(cpu, suspend.marks(&record), released_ns);
        }
    }
    longest
}

/// When vcpu 0 released the others.
fn released_ns(kept: &Kept, suspend: &Suspend) -> Option<u64> {
    let record = kept.rings.record(CpuId::BOOT, suspend.number)?;
    let released = suspend.marks(&record).find(|(mark, _)| *mark == Mark::AllReleased);
    released.map(|(_, ns)| ns)
}

/// Tells of one suspend, and lets other tasks run after each line.
async fn tell(kept: &Kept, number: u64) {
    let Some(suspend) = remembered(kept, number) else { return };
    let lost_before = console::counts().lost_lines;
    let longest = longest(kept, &suspend);
    crate::say!(
        "phases",
        suspend = number,
        outcome = suspend.outcome(),
        vcpus = longest.nr_cpus(),
        asked_at_ns = suspend.asked_ns,
    );
    for (stage, time) in longest.stages() {
        crate::say!(
            "phase-stage",
            suspend = number,
            stage = stage,
            vcpus = time.nr_cpus,
            least_ns = time.least_ns,
            most_ns = time.most_ns,
            most_vcpu = time.most_on,
        );
        wait::yield_now().await;
    }
    let mut lines = 0_u64;
    for cpu in CpuId::first(kept.rings.nr()) {
        if let Some(line) = line_of(kept, &suspend, cpu) {
            console::print(&line);
            lines += 1;
        }
        wait::yield_now().await;
    }
    let lost_lines = console::counts().lost_lines - lost_before;
    crate::say!("phases-end", suspend = number, lines = lines, lost_lines = lost_lines);
}

fn line_of(kept: &Kept, suspend: &Suspend, cpu: CpuId) -> Option<Line> {
    let record = kept.rings.record(cpu, suspend.number)?;
    let mut line = Line::new("phase");
    line.field("suspend", &suspend.number);
    line.field("vcpu", &cpu);
    for (mark, ns) in suspend.marks(&record) {
        line.fields(format_args!("{}_ns={ns}", mark.name()));
    }
    Some(line)
}

//! The bench of the rendezvous: all other vcpus gathered, no work, all released. Until the leader goes on (`until=release`), and
//! until the last of the others has left (`until=out`).
//!
//! The others have nothing to do and are blocked in Xen for a millisecond before each sample (`other=idle`), or each runs a task that
//! spins, and lets its executor look every few microseconds (`other=busy`). With more busy vcpus than processors a sample holds the
//! time until each of them has had its turn, which is Xen's scheduler's and nobody else's.

use core::fmt;

use smp::Outcome;
use xen_sys::primitive::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::others::{self, Apart};
use super::report::{Field, Report};
use crate::time::tsc;
use crate::{cpus, executor, timer, wait};

/// Samples of a rendezvous: fewer where each takes longer.
fn samples(vcpus: usize) -> u32 {
    u32::try_from(800 / vcpus.max(1)).map_or(10, |n| n.clamp(10, 100))
}

/// With more vcpus than this busy ones are left out: a sample takes seconds, nearly all of them theirs.
const MOST_BUSY: usize = 128;

/// Turns of a busy vcpu's loop between two looks of its executor, a few microseconds.
const TURNS: u32 = 5000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Other {
    Idle,
    Busy,
}

impl fmt::Display for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Other::Idle => "idle",
            Other::Busy => "busy",
        })
    }
}

/// Rendezvous of all vcpus.
pub(super) async fn rendezvous(report: &mut Report) {
    let vcpus = cpus::nr();
    let states: &[Other] = if vcpus > MOST_BUSY { &[Other::Idle] } else { &[Other::Idle, Other::Busy] };
    for &other in states {
        if vcpus == 1 {
            report.skip(&[("other", &other)], &others::NONE);
            continue;
        }
        let busy = if other == Other::Busy { Some(Busy::start().await) } else { None };
        for (name, out) in [("release", false), ("out", true)] {
            let variant: [Field<'_>; 3] = [("vcpus", &vcpus), ("other", &other), ("until", &name)];
            report.measure(&variant, samples(vcpus), || {
                if other == Other::Idle {
                    others::all().into_iter().for_each(others::await_blocked);
                }
                let before = tsc();
                let result = cpus::rendezvous(|_, _| (Outcome::Cancelled, ()));
                let released = tsc();
                result.unwrap_or_else(|missing| panic!("{missing}"));
                others::await_that(cpus::all_have_left);
                if out { tsc() } else { released }.saturating_sub(before)
            });
        }
        if let Some(busy) = busy {
            busy.stop().await;
        }
    }
}

/// A task on every other vcpu that has always something to do.
struct Busy;

static BUSY: Apart<AtomicBool> = Apart(AtomicBool::new(false));
static RUNNING: AtomicUsize = AtomicUsize::new(0);

impl Busy {
    async fn start() -> Busy {
        BUSY.0.store(true, Ordering::Relaxed); // ORDERING: Relaxed, as below.
        let others = others::all();
        for cpu in &others {
            executor::spawn_on(*cpu, async {
                // ORDERING: Relaxed in all: a flag and a count, nothing is read because of them.
                RUNNING.fetch_add(1, Ordering::Relaxed);
                while BUSY.0.load(Ordering::Relaxed) {
                    // Where QEMU counts instructions a PAUSE costs it more than thousands of others.
                    for turn in 0..TURNS {
                        core::hint::black_box(turn);
                    }
                    core::hint::spin_loop();
                    wait::yield_now().await;
                }
                RUNNING.fetch_sub(1, Ordering::Relaxed);
            });
        }
        running(others.len()).await;
        Busy
    }

    async fn stop(self) {
        BUSY.0.store(false, Ordering::Relaxed); // ORDERING: Relaxed, as above.
        running(0).await;
    }
}

async fn running(nr: usize) {
    // ORDERING: Relaxed, as above.
    while RUNNING.load(Ordering::Relaxed) != nr {
        timer::sleep(1_000_000).await;
    }
}

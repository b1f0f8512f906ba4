//! How those who come to a rendezvous are counted: `smp::Arrivals`, one line for all, beside trees of such counters.
//!
//! In a sample: all of a domain's CPUs come once, but for the leader, which begins the count. Each thread stands for as many CPUs
//! as there are for each, and has them come one after the other with nothing in between: the most that processors can be in each
//! other's way. The throughput is arrivals a second of all threads together. Not in it: whatever an arrival costs besides, which
//! under Xen is two switches of vcpus and a hypercall.
//!
//! | name | |
//! |---|---|
//! | `flat` | one counter |
//! | `tree_32`, `tree_8` | a counter for each 32 or 8 CPUs; the last of each group counts in one for the groups |
//!
//! ORDERING: a round's begin and end are Release in who says it and Acquire in who waits for it, so that rounds do not overlap.

use std::hint::black_box;
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use benches::on_threads;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use crossbeam_utils::CachePadded;
use smp::{Arrivals, Generation};

/// vcpus of the domain, the leader among them.
const VCPUS: [usize; 3] = [32, 128, 512];
/// 1, 2, 4 … threads, up to one for each processor: with more of them, or another load on the machine, a sample is time slices.
fn threads() -> impl Iterator<Item = usize> {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::iter::successors(Some(1), |nr| Some(nr * 2)).take_while(move |nr| *nr <= processors)
}

/// A way to count.
trait Count: Sync {
    fn expect(&self, round: u64, nr: usize);
    fn one(&self, round: u64, cpu: usize) -> bool;
}

impl Count for Arrivals {
    fn expect(&self, round: u64, nr: usize) {
        Arrivals::expect(self, Generation::new(round), nr);
    }

    fn one(&self, round: u64, _cpu: usize) -> bool {
        Arrivals::one(self, Generation::new(round))
    }
}

/// As [`Arrivals`], of groups.
struct Tree {
    group: usize,
    groups: Vec<CachePadded<Arrivals>>,
    root: CachePadded<Arrivals>,
}

impl Tree {
    fn new(group: usize, most: usize) -> Tree {
        let counter = || CachePadded::new(Arrivals::new());
        Tree { group, groups: (0..most.div_ceil(group)).map(|_| counter()).collect(), root: counter() }
    }
}

impl Count for Tree {
    fn expect(&self, round: u64, nr: usize) {
        let round = Generation::new(round);
        let mut left = nr;
        for group in &self.groups {
            group.expect(round, left.min(self.group));
            left = left.saturating_sub(self.group);
        }
        self.root.expect(round, nr.div_ceil(self.group));
    }

    fn one(&self, round: u64, cpu: usize) -> bool {
        let round = Generation::new(round);
        self.groups[cpu / self.group].one(round) && self.root.one(round)
    }
}

/// `rounds` in each of which `nr` CPUs come, on `threads` threads.
fn come(count: &impl Count, nr: usize, threads: usize, rounds: u64) -> Duration {
    // Who has begun the last round, for all to see.
    let begun = CachePadded::new(AtomicU64::new(0));
    let ended = CachePadded::new(AtomicU64::new(0));
    on_threads(threads, |thread| {
        let start = Instant::now();
        for round in 1..=rounds {
            if thread == 0 {
                count.expect(round, nr);
                begun.store(round, Ordering::Release);
            }
            while begun.load(Ordering::Acquire) != round {
                std::hint::spin_loop();
            }
            for cpu in (thread..nr).step_by(threads) {
                if black_box(count.one(round, cpu)) {
                    ended.store(round, Ordering::Release);
                }
            }
            while ended.load(Ordering::Acquire) != round {
                std::hint::spin_loop();
            }
        }
        start.elapsed()
    })
}

fn arrivals(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("arrivals");
    for vcpus in VCPUS {
        let nr = vcpus - 1;
        group.throughput(Throughput::Elements(nr as u64));
        for threads in threads() {
            let mut measure = |name: &str, come: &dyn Fn(u64) -> Duration| {
                let id = BenchmarkId::new(name, format!("{vcpus}_vcpus/{threads}_threads"));
                group.bench_function(id, |bencher| bencher.iter_custom(come));
            };
            measure("flat", &|rounds| come(&Arrivals::new(), nr, threads, rounds));
            for size in [32, 8] {
                measure(&format!("tree_{size}"), &|rounds| come(&Tree::new(size, nr), nr, threads, rounds));
            }
        }
    }
}

criterion_group!(name = benches; config = benches::criterion(); targets = arrivals);
criterion_main!(benches);

//! Calls to another CPU: posted to its inbox, taken, run, and known to be over. One thread posts and takes in turn, or
//! one thread takes what 1 or 3 others post to it.
//!
//! In a sample: a poster posts 8 calls and waits until all are over; the taker looks only when it has been rung, takes
//! all that is there and runs it. A call sets nothing in motion but its end; a ring sets a flag. Not in it: the hypercall
//! and the upcall that a ring costs under Xen. The throughput is calls of one poster a second, the mean of all posters.
//! Which threads have a processor to themselves is up to the host: with 4 threads on 2 processors mostly the wait for
//! it is measured.
//!
//! | name | |
//! |---|---|
//! | `stasis` | `Mail`: nodes of the callers, in a list behind one word; whoever finds that empty rings |
//! | `seg_queue`, `array_queue` | crossbeam's, the second for as many calls as there can be; a flag says whether somebody has rung already |
//! | `mutex_deque` | `Mutex<VecDeque>`; whoever finds it empty rings. The taker swaps it for an empty one |
//!
//! The alternatives allocate nothing on the way but the blocks of `seg_queue`; each call carries its function, its
//! argument, and where to note its end, by a store. Ours can also be awaited, and dropped: its end is an exchange.
//!
//! ORDERING, of the queues that ours is held against: a bell's swap is AcqRel on both sides, as a delivered event would order it; the end of a
//! call is Release, and Acquire in who waits for it. Flags that end a sample are Relaxed: threads are joined after it.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use benches::{Host, THREADS, on_threads};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use crossbeam_queue::{ArrayQueue, SegQueue};
use percpu::{CpuId, Masked, hosted};
use smp::{Backoff, CallNode, Delivery, Kinds, Mail, Patience};

/// Calls of one poster that are under way at once.
const CALLS: usize = 8;
const MAX_POSTERS: usize = 3;

/// Whether the taker has been rung. A locked operation, as Xen's is.
#[derive(Default)]
struct Bell(AtomicBool);

impl Bell {
    fn ring(&self) {
        self.0.swap(true, AcqRel);
    }

    fn was_rung(&self) -> bool {
        self.0.load(Relaxed) && self.0.swap(false, AcqRel)
    }
}

/// How calls reach the taker.
trait Way: Sync {
    fn bell(&self) -> &Bell;
    /// Posts [`CALLS`] calls of poster `poster`, rings where it has to, then waits for them; `meanwhile` while it does.
    fn call_and_wait(&self, poster: usize, meanwhile: impl FnMut());
    /// Takes and runs what is there.
    fn serve(&self);
}

fn work(_: &Masked, argument: usize) {
    black_box(argument);
}

struct Ours {
    mail: Mail<Bell>,
    nodes: [[&'static CallNode; CALLS]; MAX_POSTERS],
}

impl Delivery for Bell {
    fn ring(&self, _cpu: CpuId) {
        Bell::ring(self);
    }

    fn handle(&self, _masked: &Masked, _kinds: Kinds) {}
}

impl Ours {
    fn new() -> Ours {
        let node = |_| &*Box::leak(Box::new(CallNode::new()));
        Ours { mail: Mail::new(1, Bell::default()), nodes: std::array::from_fn(|_| std::array::from_fn(node)) }
    }
}

impl Way for Ours {
    fn bell(&self) -> &Bell {
        self.mail.delivery()
    }

    fn call_and_wait(&self, poster: usize, mut meanwhile: impl FnMut()) {
        let pending = self.nodes[poster].map(|node| {
            self.mail.call(CpuId::BOOT, node, work, poster).expect("its last call is over, and that was seen")
        });
        meanwhile();
        pending.into_iter().for_each(|pending| pending.wait(&Host));
    }

    fn serve(&self) {
        self.mail.serve(&hosted::masked());
    }
}

/// A call on its way, in one of the other queues.
#[derive(Clone, Copy)]
struct Call {
    work: fn(&Masked, usize),
    argument: usize,
    over: &'static AtomicBool,
}

impl Call {
    fn run(self) {
        (self.work)(&hosted::masked(), self.argument);
        self.over.store(true, Release);
    }
}

/// A queue of them.
trait Queue: Sync {
    /// Whether the taker has to be rung.
    fn push(&self, call: Call) -> bool;
    fn run_all(&self);
}

struct Flagged<Q> {
    queue: Q,
    /// Somebody has rung, and the taker has not looked since.
    rung: AtomicBool,
}

impl Queue for Flagged<SegQueue<Call>> {
    fn push(&self, call: Call) -> bool {
        self.queue.push(call);
        !self.rung.swap(true, AcqRel)
    }

    fn run_all(&self) {
        self.rung.swap(false, AcqRel);
        while let Some(call) = self.queue.pop() {
            call.run();
        }
    }
}

impl Queue for Flagged<ArrayQueue<Call>> {
    fn push(&self, call: Call) -> bool {
        assert!(self.queue.push(call).is_ok(), "there is room for all");
        !self.rung.swap(true, AcqRel)
    }

    fn run_all(&self) {
        self.rung.swap(false, AcqRel);
        while let Some(call) = self.queue.pop() {
            call.run();
        }
    }
}

/// What is posted to, and the empty one that it is swapped for.
#[derive(Default)]
struct Locked {
    posted: Mutex<VecDeque<Call>>,
    spare: Mutex<VecDeque<Call>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue for Locked {
    fn push(&self, call: Call) -> bool {
        let mut posted = lock(&self.posted);
        posted.push_back(call);
        posted.len() == 1
    }

    fn run_all(&self) {
        // Only the taker is ever here.
        let mut taken = lock(&self.spare);
        std::mem::swap(&mut *lock(&self.posted), &mut *taken);
        taken.drain(..).for_each(Call::run);
    }
}

struct By<Q> {
    queue: Q,
    bell: Bell,
    over: [[&'static AtomicBool; CALLS]; MAX_POSTERS],
}

impl<Q> By<Q> {
    fn new(queue: Q) -> By<Q> {
        // As far apart as call nodes are.
        #[repr(align(64))]
        struct Apart(AtomicBool);
        let over = |_| &Box::leak(Box::new(Apart(AtomicBool::new(false)))).0;
        By { queue, bell: Bell::default(), over: std::array::from_fn(|_| std::array::from_fn(over)) }
    }
}

impl<Q: Queue> Way for By<Q> {
    fn bell(&self) -> &Bell {
        &self.bell
    }

    fn call_and_wait(&self, poster: usize, mut meanwhile: impl FnMut()) {
        for over in self.over[poster] {
            over.store(false, Relaxed);
            if self.queue.push(Call { work, argument: poster, over }) {
                self.bell.ring();
            }
        }
        meanwhile();
        for over in self.over[poster] {
            let mut backoff = Backoff::new(&Host, Patience::SHORT);
            while !over.load(Acquire) {
                backoff.step();
            }
        }
    }

    fn serve(&self) {
        self.queue.run_all();
    }
}

/// One thread is both.
fn alone(way: &impl Way, rounds: u64) -> Duration {
    let _on = hosted::enter(CpuId::BOOT);
    let start = Instant::now();
    for _ in 0..rounds {
        way.call_and_wait(0, || {
            if way.bell().was_rung() {
                way.serve();
            }
        });
    }
    start.elapsed()
}

/// A thread takes, the others post.
fn together(way: &impl Way, posters: usize, rounds: u64) -> Duration {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _on = hosted::enter(CpuId::BOOT);
            let mut backoff = Backoff::new(&Host, Patience::SHORT);
            while !over.load(Relaxed) {
                if way.bell().was_rung() {
                    way.serve();
                    backoff = Backoff::new(&Host, Patience::SHORT);
                } else {
                    backoff.step();
                }
            }
        });
        let mean = on_threads(posters, |poster| {
            let _on = hosted::enter(CpuId::new(poster + 1).expect("small"));
            let start = Instant::now();
            (0..rounds).for_each(|_| way.call_and_wait(poster, || {}));
            start.elapsed()
        });
        over.store(true, Relaxed);
        mean
    })
}

fn measure(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, threads: usize, way: &impl Way) {
    group.throughput(Throughput::Elements(CALLS as u64));
    group.bench_function(BenchmarkId::new(name, format!("{threads}_threads")), |bencher| {
        bencher.iter_custom(|rounds| match threads {
            1 => alone(way, rounds),
            _ => together(way, threads - 1, rounds),
        });
    });
}

fn inbox(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("inbox");
    for threads in THREADS {
        measure(&mut group, "stasis", threads, &Ours::new());
        let rung = || AtomicBool::new(false);
        measure(&mut group, "seg_queue", threads, &By::new(Flagged { queue: SegQueue::new(), rung: rung() }));
        let queue = ArrayQueue::new(CALLS * MAX_POSTERS);
        measure(&mut group, "array_queue", threads, &By::new(Flagged { queue, rung: rung() }));
        measure(&mut group, "mutex_deque", threads, &By::new(Locked::default()));
    }
}

criterion_group!(name = benches; config = benches::criterion(); targets = inbox);
criterion_main!(benches);

//! From pending events to their handlers: k ports of one CPU at once, on 1, 2 and 4 CPUs, each played by a thread.
//!
//! In a sample: taking k pending events, finding the handler of each, and running it, which counts; and one reading of
//! the clock before and one after (`clock` is that alone). Not in it: delivering them, which the thread does in between.
//! The throughput is events of one thread a second while it is taking events, the mean of all threads.
//!
//! | `demux/2l/…` | what finds the handler |
//! |---|---|
//! | `stasis` | `Events::demux`, with its counters, its own ports apart from devices', and its check for a new life |
//! | `vec` | a plain scan of the same words (selector; pending, masked and own anew for each event), and a table that never changes: a bound |
//! | `vec_by_word` | the same, but all events of a word are taken at once: another bound, which a handler that masks or unbinds may not like |
//! | `mutex_vec`, `mutex_hash` | the scan of `vec`, and a table for the domain behind a lock, taken for each event and left before its handler runs |
//!
//! With the FIFO ABI the queues cannot be read from outside, so there the locked tables are asked by the action that
//! `Events::demux` has found: `demux/fifo/demux_and_mutex_…` has our own look-up in it as well, two loads for each event.
//!
//! The fake has 1023 ports for all CPUs, so there is no 256 with 4 threads, and 1000 with one only. Delivery with the
//! FIFO ABI takes a lock in the fake, which keeps the threads apart for much of the time: locked tables meet less
//! contention there than with the 2-level ABI, where it is an exchange for each word.
//!
//! ORDERING, of what ours is held against: delivery is SeqCst, as Xen's locked instructions are; a scan takes a word by AcqRel and
//! reads pending bits by Acquire, as `demux` does; masks, which nobody changes here, and counts are Relaxed.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use benches::{THREADS, on_threads};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use evtchn::hosted::{self, Channel, Fake, cpu};
use evtchn::{AbiKind, Action, EndOfEvent, Events, Handlers, Ipi, Upcall, Virq};
use percpu::Masked;

/// Ports of one CPU that are pending at once.
const PENDING: [usize; 5] = [1, 8, 64, 256, 1000];
/// Ports that the fake has for devices.
const PORTS: usize = 1000;

fn nothing(_: &Masked) {}

fn run(_: &Masked, action: &Action) {
    black_box(action.context());
}

const HANDLERS: Handlers = Handlers::new().virq(Virq::TIMER, nothing).ipi(Ipi::Call, nothing);

/// A domain with device ports for each of its CPUs.
struct Domain {
    xen: Fake,
    events: Events<Fake>,
    ports: Vec<Vec<u32>>,
}

impl Domain {
    fn new(abi: AbiKind, cpus: usize, k: usize, handler: fn(&Masked, &Action)) -> Domain {
        let xen = Fake::new(cpus);
        let events = hosted::boot(&xen, abi, HANDLERS);
        let bind = |n: usize| {
            let port = xen.allocate(Channel::Device(cpu(n))).expect("the fake has ports enough");
            let context = usize::try_from(port).expect("small");
            let action = Action::new(EndOfEvent::AtOnce, context, handler);
            events.bind_device(hosted::nr(port), cpu(n), &action).expect("a new port can be bound");
            port
        };
        let bring_up = |n| {
            let _on = percpu::hosted::enter(cpu(n));
            xen.place(cpu(n));
            hosted::bring_up(&events, &xen).expect("the fake has ports enough");
            let ports = (0..k).map(|_| bind(n)).collect();
            // The one that placing the vcpu_info left, and those of binding.
            events.demux(&hosted::masked(), xen.flags(cpu(n)));
            ports
        };
        let ports = (0..cpus).map(bring_up).collect();
        Domain { xen, events, ports }
    }

    /// Ports of CPU `n` by the word that they are in.
    fn words(&self, n: usize) -> Vec<(usize, u64)> {
        let mut words = [0; 64];
        for port in &self.ports[n] {
            words[*port as usize / 64] |= 1 << (port % 64);
        }
        words.into_iter().enumerate().filter(|(_, bits)| *bits != 0).collect()
    }

    /// Makes all ports of CPU `n` pending.
    fn deliver(&self, abi: AbiKind, n: usize, words: &[(usize, u64)]) {
        if abi == AbiKind::Fifo {
            self.ports[n].iter().for_each(|port| {
                self.xen.raise(*port);
            });
            return;
        }
        let flags = self.xen.flags(cpu(n));
        for (word, bits) in words {
            self.xen.0.shared.evtchn_pending[*word].fetch_or(*bits, SeqCst);
            flags.evtchn_pending_sel.fetch_or(1 << word, SeqCst);
        }
        flags.evtchn_upcall_pending.store(1, SeqCst);
    }

    /// On all CPUs: delivers and takes, `rounds` times; how long the taking took.
    fn rounds(&self, abi: AbiKind, rounds: u64, take: impl Fn(usize, &Masked) + Sync) -> Duration {
        on_threads(self.ports.len(), |n| {
            let _on = percpu::hosted::enter(cpu(n));
            let (masked, words) = (hosted::masked(), self.words(n));
            let mut taking = Duration::ZERO;
            for _ in 0..rounds {
                // A turn of the executor for each, so that no port fires too often in one.
                self.events.end_turn(self.xen.flags(cpu(n)));
                self.deliver(abi, n, &words);
                let start = Instant::now();
                take(n, &masked);
                taking += start.elapsed();
            }
            taking
        })
    }
}

/// A port's handler, as the alternatives keep it.
struct Entry {
    handler: fn(&Entry),
    context: u32,
    count: AtomicU64,
}

impl Entry {
    /// In memory of its own, as an action is.
    fn leak(port: u32) -> &'static Entry {
        Box::leak(Box::new(Entry {
            handler: |entry| {
                black_box(entry.context);
            },
            context: port,
            count: AtomicU64::new(0),
        }))
    }

    fn run(&self) {
        self.count.fetch_add(1, Relaxed);
        (self.handler)(self);
    }
}

type ByPort = Vec<Option<&'static Entry>>;
type Hashed = HashMap<u32, &'static Entry>;

static PLAIN: LazyLock<ByPort> = LazyLock::new(|| (0..1024).map(|port| Some(Entry::leak(port))).collect());
static LOCKED: LazyLock<Mutex<ByPort>> = LazyLock::new(|| Mutex::new(PLAIN.clone()));
static HASHED: LazyLock<Mutex<Hashed>> =
    LazyLock::new(|| Mutex::new((0..1024).map(|port| (port, Entry::leak(port))).collect()));

fn by_plain_table(port: u32) {
    if let Some(entry) = PLAIN.get(port as usize).copied().flatten() {
        entry.run();
    }
}

fn by_locked_table(port: u32) {
    let entry = LOCKED.lock().unwrap_or_else(PoisonError::into_inner).get(port as usize).copied().flatten();
    if let Some(entry) = entry {
        entry.run();
    }
}

fn by_hashed_table(port: u32) {
    let entry = HASHED.lock().unwrap_or_else(PoisonError::into_inner).get(&port).copied();
    if let Some(entry) = entry {
        entry.run();
    }
}

/// An action that asks one of the tables.
fn ask<const TABLE: usize>(_: &Masked, action: &Action) {
    let port = u32::try_from(action.context()).expect("a port");
    [by_locked_table, by_hashed_table][TABLE](port);
}

/// The 2-level ABI without ado; returns how many events there were. `take` says which of a word's events are taken at
/// once.
fn scan(xen: &Fake, n: usize, own: &[u64; 64], take: fn(u64) -> u64, dispatch: impl Fn(u32)) -> u32 {
    let (flags, shared) = (xen.flags(cpu(n)), &xen.0.shared);
    let mut events = 0;
    while flags.evtchn_upcall_pending.swap(0, AcqRel) != 0 {
        let mut selector = flags.evtchn_pending_sel.swap(0, AcqRel);
        while selector != 0 {
            let word = selector.trailing_zeros();
            selector &= selector - 1;
            let (pending, mask) = (&shared.evtchn_pending[word as usize], &shared.evtchn_mask[word as usize]);
            loop {
                let mut taken = take(pending.load(Acquire) & !mask.load(Relaxed) & own[word as usize]);
                if taken == 0 {
                    break;
                }
                pending.fetch_and(!taken, AcqRel);
                while taken != 0 {
                    dispatch(word * 64 + taken.trailing_zeros());
                    taken &= taken - 1;
                    events += 1;
                }
            }
        }
    }
    events
}

/// As `stasis` does: a handler may mask or unbind another port of the word.
fn lowest(bits: u64) -> u64 {
    bits & bits.wrapping_neg()
}

fn all(bits: u64) -> u64 {
    bits
}

/// A group of benches with so many CPUs, and so many ports for each.
struct Bench<'a, 'g> {
    group: &'a mut BenchmarkGroup<'g, WallTime>,
    abi: AbiKind,
    cpus: usize,
    k: usize,
}

impl Bench<'_, '_> {
    /// `take` returns how many events it has taken.
    fn measure(&mut self, name: &str, domain: &Domain, take: impl Fn(usize, &Masked) -> u32 + Sync) {
        let k = u32::try_from(self.k).expect("1000 at most");
        let id = BenchmarkId::new(format!("{name}/{}_threads", self.cpus), self.k);
        self.group.throughput(Throughput::Elements(k.into()));
        self.group.bench_function(id, |bencher| {
            bencher.iter_custom(|rounds| {
                domain.rounds(self.abi, rounds, |n, masked| assert_eq!(take(n, masked), k, "not all were taken"))
            });
        });
    }

    fn demux(&mut self, name: &str, handler: fn(&Masked, &Action)) {
        let domain = Domain::new(self.abi, self.cpus, self.k, handler);
        self.measure(name, &domain, |n, masked| match domain.events.demux(masked, domain.xen.flags(cpu(n))) {
            Upcall::Handled(events) => events,
            _ => 0,
        });
    }

    fn scan(&mut self, name: &str, take: fn(u64) -> u64, dispatch: impl Fn(u32) + Sync) {
        let domain = Domain::new(self.abi, self.cpus, self.k, run);
        let own = |n| {
            let mut own = [0; 64];
            domain.words(n).into_iter().for_each(|(word, bits)| own[word] = bits);
            own
        };
        let own: Vec<[u64; 64]> = (0..self.cpus).map(own).collect();
        self.measure(name, &domain, |n, _| scan(&domain.xen, n, &own[n], take, &dispatch));
    }
}

fn demux(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("clock");
    group.bench_function("clock", |bencher| {
        bencher.iter_custom(|rounds| (0..rounds).map(|_| Instant::now().elapsed()).sum());
    });
    group.finish();
    for abi in [AbiKind::TwoLevel, AbiKind::Fifo] {
        let mut group = criterion.benchmark_group(format!("demux/{abi}"));
        for cpus in THREADS {
            for k in PENDING.into_iter().filter(|k| k * cpus <= PORTS) {
                let mut bench = Bench { group: &mut group, abi, cpus, k };
                bench.demux("stasis", run);
                if abi == AbiKind::TwoLevel {
                    bench.scan("vec", lowest, by_plain_table);
                    bench.scan("vec_by_word", all, by_plain_table);
                    bench.scan("mutex_vec", lowest, by_locked_table);
                    bench.scan("mutex_hash", lowest, by_hashed_table);
                } else {
                    bench.demux("demux_and_mutex_vec", ask::<0>);
                    bench.demux("demux_and_mutex_hash", ask::<1>);
                }
            }
        }
    }
}

criterion_group!(name = benches; config = benches::criterion(); targets = demux);
criterion_main!(benches);

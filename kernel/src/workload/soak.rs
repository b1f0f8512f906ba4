//! `workload=soak`: everything at once for as long as it takes, beside the heartbeat and the pattern; the first thing that is wrong is
//! a panic that names it.
//!
//! | what | who does it | wrong is |
//! |---|---|---|
//! | timers of random lengths | every vcpu | one that fires early; one that Xen has been asked for and does not deliver |
//! | IPI calls to all others, in random order | every vcpu | one that is not run, run twice, or run elsewhere |
//! | sends on ports from this domain to itself, single ones and storms | every vcpu | one whose number no handler sees (`soak/ports.rs`) |
//! | the ports' moves to other vcpus, and their new lives after a restore | vcpu 0 | two handlers at once |
//! | readings of the clock | every vcpu, all the time | one that is lower than what any vcpu has read before it |
//!
//! Nothing is late by the clock alone, as Xen runs a vcpu when it likes: what has been told to a vcpu is late when every vcpu that is
//! up has had [`LATE_TURNS`] turns since ([`Grace`]). Each turn there is an upcall taken by whoever was told, and a sender that had
//! lost its processor inside Xen has come out of it.
//!
//! Every five seconds vcpu 0 says `stasis: soak …`; before the domain is powered off all stop, the last number of each port is
//! looked for, and that is told as `stasis: check name=soak`. Random numbers come from `seed=`.

mod ports;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use percpu::{CpuId, CpuSet, Masked, PerCpu};
use smp::{CallNode, NotPosted, Pending};
use spin::Once;
use xen_sys::primitive::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use self::ports::Ports;
use super::random::Random;
use crate::{check, cpus, executor, time, timer, wait};

/// The shortest and, for each vcpu that the domain has, the longest timer: all together make some 800 turns a second.
const SHORTEST_NS: u64 = 50_000;
const LONGEST_NS_PER_VCPU: u64 = 2_500_000;
/// Sends in a turn, and one turn of how many is a storm of how many.
const SENDS: u64 = 16;
const STORM_EVERY: usize = 64;
const STORM: u64 = 500;
/// Turns of all vcpus after which what was told before them is late. One would do if it began after that.
const LATE_TURNS: u64 = 8;
/// How often who waits for a vcpu looks.
const LOOK_NS: u64 = 1_000_000;
/// A timer event is lost when it is so late, and stays so for [`LATE_TURNS`] turns of its vcpu: after a checkpoint it may have been late for
/// as long as that took.
const TIMER_LIMIT_NS: u64 = 10_000_000_000;
const REPORT_NS: u64 = 5_000_000_000;
/// How long all may take to stop.
const STOP_LIMIT_NS: u64 = 60_000_000_000;

/// Bits of a call's argument that carry its number; above them stands the sender.
const NUMBER_BITS: u32 = 48;

/// One vcpu's part. Suspend: *kept*.
#[derive(Default)]
struct Share {
    /// Times that a task here has woken up by timer, since boot. Written by its CPU.
    turns: AtomicU64,
    timers: AtomicU64,
    most_late_ns: AtomicU64,
    calls: AtomicU64,
    /// Calls of this vcpu that have been run, the number of the last one, and where that was. Written in upcalls of whoever ran it.
    runs: AtomicU64,
    last: AtomicU64,
    ran_on: AtomicU64,
    /// Its tasks that have not stopped.
    alive: AtomicU64,
}

struct Soak {
    shares: PerCpu<Share>,
    ports: Ports,
    /// The highest reading of the clock so far.
    clock: AtomicU64,
    stop: AtomicBool,
}

static SOAK: Once<Soak> = Once::new();

fn soak() -> &'static Soak {
    SOAK.get().expect("start() comes before the tasks and calls that ask")
}

/// Starts the tasks. Once.
pub(super) fn start(seed: u64) {
    const TASKS: u64 = 2;
    let nr = cpus::nr();
    let soak = SOAK.call_once(|| Soak {
        shares: PerCpu::new(nr, |_| Share { alive: AtomicU64::new(TASKS), ..Share::default() }),
        ports: Ports::new(nr),
        clock: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    for cpu in CpuId::first(nr) {
        executor::spawn_on(cpu, storm(cpu, Random::new(seed, 2 * cpu.index())));
        executor::spawn_on(cpu, call_all(cpu, Random::new(seed, 2 * cpu.index() + 1)));
    }
    executor::spawn_here(ports::tend(&soak.ports, Random::new(seed, 2 * nr)));
    executor::spawn_on(CpuId::BOOT, report());
    crate::say!("soak-ready", vcpus = nr, ports = soak.ports.nr(), seed = seed);
}

/// These vcpus are about to go down: moves the ports away. Context: task on vcpu 0.
pub(super) async fn vcpus_leave(cpus: &CpuSet) {
    if let Some(soak) = SOAK.get() {
        soak.ports.leave(cpus).await;
    }
}

/// Those that were about to go down have, or have not. Context: task on vcpu 0.
pub(super) fn vcpus_changed() {
    if let Some(soak) = SOAK.get() {
        soak.ports.nobody_leaves();
    }
}

/// Stops all and tells how it went. Context: task on vcpu 0, once.
pub(super) async fn end() {
    let Some(soak) = SOAK.get() else { return };
    // ORDERING: Relaxed, a flag; nothing is read because of it.
    soak.stop.store(true, Ordering::Relaxed);
    let all = async {
        // ORDERING: Acquire, pairs with the Release in `has_stopped`: what they have sent is seen.
        while soak.shares.iter().any(|(cpu, share)| cpus::is_up(cpu) && share.alive.load(Ordering::Acquire) != 0) {
            timer::sleep(LOOK_NS).await;
        }
        soak.ports.drained().await;
    };
    let stopped = timer::within(STOP_LIMIT_NS, all).await.is_ok();
    check::report("soak", stopped, format_args!("stopped={} {}", u8::from(stopped), Totals(soak)));
}

impl Soak {
    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed) // ORDERING: Relaxed, as where it is set.
    }

    fn has_stopped(&self, cpu: CpuId) {
        // ORDERING: Release, pairs with the Acquire in `end`.
        self.shares.on(cpu).alive.fetch_sub(1, Ordering::Release);
    }

    /// Reads the clock, and compares it with what others have read.
    fn now_ns(&self) -> u64 {
        // ORDERING: Acquire and Release, pair with each other: our reading comes after the one that we compare it with.
        let before = self.clock.load(Ordering::Acquire);
        let now = time::now_ns();
        assert!(now >= before, "soak: the clock goes back: {now} ns on vcpu {} after {before} ns", percpu::current());
        self.clock.fetch_max(now, Ordering::Release);
        now
    }
}

/// What has been told to others before it is late once this is over.
struct Grace(Vec<u64>);

impl Grace {
    fn begin() -> Grace {
        Grace(soak().shares.iter().map(|(_, share)| turns(share)).collect())
    }

    /// Whether every vcpu that is up has had its turns since.
    fn is_over(&self) -> bool {
        let mut all = soak().shares.iter().zip(&self.0);
        all.all(|((cpu, share), before)| !cpus::is_up(cpu) || turns(share) >= before + LATE_TURNS)
    }
}

fn turns(share: &Share) -> u64 {
    share.turns.load(Ordering::Relaxed) // ORDERING: Relaxed, a count that only grows.
}

/// Timers, and sends between them.
async fn storm(cpu: CpuId, mut random: Random) {
    let soak = soak();
    let share = soak.shares.on(cpu);
    let longest_ns = LONGEST_NS_PER_VCPU * cpus::nr() as u64;
    let mut turns_owed = 0;
    while !soak.is_stopping() {
        let deadline_ns = soak.now_ns() + random.within(SHORTEST_NS..=longest_ns);
        timer::until(deadline_ns).await;
        let now_ns = soak.now_ns();
        assert!(now_ns >= deadline_ns, "soak: a timer of vcpu {cpu} for {deadline_ns} ns fires at {now_ns} ns");
        let overdue_ns = timer::overdue_ns();
        turns_owed = if overdue_ns < TIMER_LIMIT_NS { 0 } else { turns_owed + 1 };
        assert!(turns_owed < LATE_TURNS, "soak: vcpu {cpu} waits for a timer event that is {overdue_ns} ns late");
        // ORDERING: Relaxed all, statistics and counts that only grow.
        share.most_late_ns.fetch_max(now_ns - deadline_ns, Ordering::Relaxed);
        share.timers.fetch_add(1, Ordering::Relaxed);
        share.turns.fetch_add(1, Ordering::Relaxed);
        let channel = random.below(soak.ports.nr());
        let sends = if random.below(STORM_EVERY) == 0 { STORM } else { random.within(1..=SENDS) };
        (0..sends).for_each(|_| soak.ports.send(channel));
    }
    soak.has_stopped(cpu);
}

/// Calls to all others, one after the other.
async fn call_all(cpu: CpuId, mut random: Random) {
    let soak = soak();
    let share = soak.shares.on(cpu);
    let node: &'static CallNode = Box::leak(Box::new(CallNode::new()));
    let nr = cpus::nr();
    let longest_ns = LONGEST_NS_PER_VCPU * nr as u64;
    let mut number = 0;
    while !soak.is_stopping() {
        timer::sleep(random.within(SHORTEST_NS..=longest_ns)).await;
        let first = random.below(nr);
        for target in CpuId::first(nr).cycle().skip(first).take(nr) {
            if target == cpu {
                continue;
            }
            match cpus::mail().call(target, node, ran, cpu.index() << NUMBER_BITS | (number + 1)) {
                Ok(pending) => {
                    number += 1;
                    share.calls.fetch_add(1, Ordering::Relaxed); // ORDERING: Relaxed, statistics.
                    is_run(cpu, target, pending).await;
                    ran_once(share, cpu, target, number);
                }
                // It was never sent.
                Err(NotPosted::Down) => {}
                Err(NotPosted::Busy) => panic!("soak: a call of vcpu {cpu} is over and its node is not"),
            }
            soak.now_ns();
        }
    }
    soak.has_stopped(cpu);
}

/// Waits for the end of a call.
async fn is_run(cpu: CpuId, target: CpuId, mut pending: Pending) {
    let grace = Grace::begin();
    loop {
        // First whether it is late, then whether it has come.
        let is_late = grace.is_over();
        if timer::within(LOOK_NS, &mut pending).await.is_ok() {
            return;
        }
        assert!(!is_late, "soak: a call from vcpu {cpu} to vcpu {target} is not run");
    }
}

fn ran_once(share: &Share, cpu: CpuId, target: CpuId, number: usize) {
    // ORDERING: Relaxed all, published by the end of the call.
    let runs = share.runs.load(Ordering::Relaxed);
    let (last, on) = (share.last.load(Ordering::Relaxed), share.ran_on.load(Ordering::Relaxed));
    assert!(
        runs == number as u64 && last == number as u64 && on == target.index() as u64,
        "soak: call {number} of vcpu {cpu} to vcpu {target}: {runs} have run, the last was {last}, on vcpu {on}"
    );
}

/// A call of another vcpu. Context: upcall.
fn ran(_masked: &Masked, argument: usize) {
    let Some(sender) = CpuId::new(argument >> NUMBER_BITS) else { return };
    let share = soak().shares.on(sender);
    // ORDERING: Relaxed all, published by the end of the call.
    share.runs.fetch_add(1, Ordering::Relaxed);
    share.last.store((argument & ((1 << NUMBER_BITS) - 1)) as u64, Ordering::Relaxed);
    share.ran_on.store(percpu::current().index() as u64, Ordering::Relaxed);
}

async fn report() {
    let soak = soak();
    for seq in 1_u64.. {
        timer::sleep(REPORT_NS).await;
        let mut line = crate::logfmt::Line::new("soak");
        line.field("seq", &seq);
        line.fields(format_args!("{}", Totals(soak)));
        crate::console::print(&line);
        wait::yield_now().await;
    }
}

/// What has been done so far, as fields.
struct Totals<'a>(&'a Soak);

impl fmt::Display for Totals<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Soak { shares, ports, .. } = self.0;
        // ORDERING: Relaxed, statistics.
        let sum = |count: fn(&Share) -> &AtomicU64| -> u64 {
            shares.iter().map(|(_, share)| count(share).load(Ordering::Relaxed)).sum()
        };
        let late_ns = shares.iter().map(|(_, share)| share.most_late_ns.load(Ordering::Relaxed)).max().unwrap_or(0);
        let (timers, calls) = (sum(|share| &share.timers), sum(|share| &share.calls));
        write!(f, "vcpus={} timers={timers} max_late_ns={late_ns} calls={calls} {ports}", cpus::nr_up())
    }
}

//! User mode: what it may and what it may not, that it is left when something comes, and that it leaves nothing behind.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::future::Future;

use evtchn::{Action, EndOfEvent};
use mm::layout::USER_BASE;
use percpu::{CpuId, PerCpu};
use smp::Outcome;
use spin::Once;
use xen_sys::hypercall::evtchn as hypercall;
use xen_sys::primitive::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use super::Verdict;
use super::ports::{bind, settled, unbind};
use crate::loopback::Ends;
use crate::relax::Processor;
use crate::user::programs::{self, Program, hold};
use crate::user::{Process, Why};
use crate::wait::{First, first_of};
use crate::{cpus, executor, timer, wait};

/// Calls, faults, processes that never leave by themselves, and their memory.
pub(super) async fn user() -> Verdict {
    if cpus::nr() == 1 {
        return Err("needs two vcpus".into());
    }
    let last = CpuId::new(cpus::nr() - 1).expect("there are not more vcpus than CPUs");
    let counters = counters();
    // Once for what is allocated at the first of all: an empty queue of timers keeps a node.
    on(last, leaves).await?;
    on(last, sleeps).await?;
    on(CpuId::BOOT, leaves).await?;
    let before = quiet_heap().await;
    on(last, leaves).await?;
    let after = quiet_heap().await;
    if before != after {
        return Err(format!("{before:?} before and {after:?} after processes that have ended"));
    }
    let counted = stays(counters).await?;
    let after = quiet_heap().await;
    if before != after {
        return Err(format!("{before:?} before and {after:?} after processes that were ended"));
    }
    Ok(format!("counted={counted}"))
}

async fn quiet_heap() -> mm::HeapStats {
    timer::sleep(50_000_000).await;
    crate::heap::get().stats()
}

/// Runs `test` as a task of `cpu`.
async fn on<F: Future<Output = Result<(), String>> + Send>(
    cpu: CpuId,
    test: impl FnOnce() -> F + Send + 'static,
) -> Result<(), String> {
    let result = Arc::new((Once::new(), wait::Flag::new()));
    let there = result.clone();
    executor::spawn_on(cpu, async move {
        let verdict = test().await;
        there.0.call_once(|| verdict);
        there.1.set();
    });
    result.1.wait().await;
    result.0.get().expect("set before the flag").clone()
}

fn process(program: Program) -> Result<Process, String> {
    Process::new(programs::code(), program.entry()).map_err(|error| format!("{program:?}: {error}"))
}

/// Timers of this CPU.
async fn sleeps() -> Result<(), String> {
    for _ in 0..50 {
        timer::sleep(1_000_000).await;
    }
    Ok(())
}

/// User mode that leaves by itself: by a call, or by what it must not do.
async fn leaves() -> Result<(), String> {
    const CALLS: u64 = 100;
    let mut caller = process(Program::Call)?;
    let mut words = hold(&mut caller.registers, 7);
    for call in 1..=CALLS {
        let why = caller.run().await;
        let count = caller.word(0).load(Ordering::Relaxed); // ORDERING: Relaxed, written by this CPU.
        if (why, count) != (Why::Syscall, call) {
            return Err(format!("call {call}: {why}, and it has counted {count}"));
        }
        // What `syscall` itself puts there.
        (words[2], words[9]) = (caller.registers.rcx, caller.registers.r11);
        if programs::held(&mut caller.registers).map(|register| *register) != words {
            return Err(format!("call {call}: registers are lost: {}", caller.registers));
        }
    }
    caller.verify().map_err(|error| format!("its address space: {error}"))?;

    // Two at the same addresses, in turns: each counts in its own page.
    let mut pair = [process(Program::Call)?, process(Program::Call)?];
    for call in 1..=CALLS {
        for process in &mut pair {
            let why = process.run().await;
            let count = process.word(0).load(Ordering::Relaxed); // ORDERING: Relaxed, as above.
            if (why, count) != (Why::Syscall, call) {
                return Err(format!("call {call} of two: {why}, and it has counted {count}"));
            }
        }
    }
    drop(pair);

    // Its own code; the kernel's, in the direct map and in the image; Xen's; its data, as code; an instruction that is not its own.
    let kernel = mm::Pfn::new(0).direct_va();
    let cases = [
        (Program::WriteCode, 0, 14, Some(USER_BASE)),
        (Program::Read, kernel, 14, Some(kernel)),
        (Program::Read, boot::VIRT_BASE, 14, Some(boot::VIRT_BASE)),
        (Program::Read, 0, 14, Some(0)),
        (Program::Jump, kernel, 14, Some(kernel)),
        (Program::Jump, caller.registers.rdi, 14, Some(caller.registers.rdi)),
        (Program::Privileged, 0, 13, None),
    ];
    drop(caller);
    for (program, rsi, vector, address) in cases {
        let mut process = process(program)?;
        process.registers.rsi = rsi;
        let why = process.run().await;
        let Why::Fault(fault) = why else { return Err(format!("{program:?} {rsi:#x}: {why}")) };
        if fault.vector != vector || address.is_some_and(|address| address != fault.address) {
            return Err(format!("{program:?} {rsi:#x}: {why}"));
        }
    }
    Ok(())
}

/// What the tasks that have a process share with the test.
struct Counters {
    /// Where each process counts. Null until it is there; not read once `STOP` is set.
    places: PerCpu<AtomicPtr<AtomicU64>>,
    stop: PerCpu<wait::Flag>,
    ended: AtomicUsize,
    failed: Once<String>,
}

fn counters() -> &'static Counters {
    static COUNTERS: Once<Counters> = Once::new();
    let nr = cpus::nr();
    COUNTERS.call_once(|| Counters {
        places: PerCpu::new(nr, |_| AtomicPtr::new(core::ptr::null_mut())),
        stop: PerCpu::new(nr, |_| wait::Flag::new()),
        ended: AtomicUsize::new(0),
        failed: Once::new(),
    })
}

impl Counters {
    /// What the process of `cpu` has counted. Before it is stopped.
    fn count(&self, cpu: CpuId) -> u64 {
        // ORDERING: Acquire, pairs with the Release in `count_there`: the page is there.
        let place = self.places.on(cpu).load(Ordering::Acquire);
        // SAFETY: a process's word, which lives until that is told to stop, or the test fails and the domain ends.
        let place = unsafe { place.as_ref() };
        // ORDERING: Relaxed, a number that stands still or does not.
        place.map_or(0, |word| word.load(Ordering::Relaxed))
    }

    fn sum(&self) -> u64 {
        self.places.iter().map(|(cpu, _)| self.count(cpu)).sum()
    }

    /// Waits until every process has counted on.
    async fn go_on(&self) -> Result<(), String> {
        const LIMIT_NS: u64 = 20_000_000_000;
        for cpu in CpuId::first(cpus::nr()) {
            let before = self.count(cpu);
            let goes_on = async {
                while self.count(cpu) == before {
                    timer::sleep(1_000_000).await;
                }
            };
            timer::within(LIMIT_NS, goes_on).await.map_err(|timer::TimeIsUp| match self.failed.get() {
                Some(why) => why.clone(),
                None => format!("the process of vcpu {cpu} stands still at {before}"),
            })?;
        }
        Ok(())
    }
}

/// A process that counts for ever, until it is stopped. Context: a task on each CPU.
async fn count_there(counters: &'static Counters) -> Result<(), String> {
    let cpu = percpu::current();
    let (mut process, _) = programs::counting(cpu.index() as u64).map_err(|error| format!("Count: {error}"))?;
    let place = core::ptr::from_ref(process.word(0)).cast_mut();
    counters.places.on(cpu).store(place, Ordering::Release); // ORDERING: Release, pairs with the Acquire in `count`.
    match first_of(process.run(), counters.stop.on(cpu).wait()).await {
        First::One(why) => {
            // Its word is still read.
            core::mem::forget(process);
            Err(format!("the process of vcpu {cpu}: {why}"))
        }
        First::Other(()) => Ok(()),
    }
}

/// User mode that never leaves by itself, on every vcpu: events, calls, timers and rendezvous come all the same, and it goes on. How far
/// it has counted.
async fn stays(counters: &'static Counters) -> Result<u64, String> {
    const EVENTS: u64 = 500;
    const CALLS: usize = 500;
    const ROUNDS: usize = 40;
    let nr = cpus::nr();
    for cpu in CpuId::first(nr) {
        executor::spawn_on(cpu, async move {
            if let Err(why) = count_there(counters).await {
                counters.failed.call_once(|| why);
            }
            counters.ended.fetch_add(1, Ordering::Release); // ORDERING: Release, pairs with the Acquire below.
        });
    }
    counters.go_on().await?;

    let last = CpuId::new(nr - 1).expect("there are not more vcpus than CPUs");
    let Ends { near: here, far: port } = Ends::open()?;
    let action = Action::new(EndOfEvent::AtOnce, 0, |_, _| {});
    let binding = bind(port, last, &action)?;
    let first = settled(&action).await;
    for sent in 1..=EVENTS {
        hypercall::send(here).map_err(|error| format!("send: {error}"))?;
        let comes = async {
            while action.count() < first + sent {
                wait::yield_now().await;
            }
        };
        timer::within(5_000_000_000, comes).await.map_err(|timer::TimeIsUp| format!("event {sent} does not come"))?;
    }
    unbind(binding).await?;
    counters.go_on().await?;

    let mut seen_in_user = 0;
    for call in 0..CALLS {
        seen_in_user += usize::from(cpus::state_racy(last) == cpus::State::User);
        match cpus::mail().run_on(last, &Processor, |_| percpu::current()) {
            Ok(ran_on) if ran_on == last => {}
            other => return Err(format!("call {call}: {other:?}")),
        }
    }
    if seen_in_user < CALLS / 2 {
        return Err(format!("vcpu {last} was in user mode at {seen_in_user} of {CALLS} calls"));
    }
    on(last, sleeps).await?;
    counters.go_on().await?;

    for round in 0..ROUNDS {
        let moved = cpus::rendezvous(|_, _| {
            let before = counters.sum();
            (Outcome::Cancelled, (0..1000).any(|_| counters.sum() != before))
        });
        match moved {
            Ok(false) => counters.go_on().await?,
            Ok(true) => return Err(format!("round {round}: user mode runs in a rendezvous")),
            Err(missing) => return Err(format!("round {round}: {missing}")),
        }
    }

    let counted = counters.sum();
    for (_, stop) in counters.stop.iter() {
        stop.set();
    }
    // ORDERING: Acquire, pairs with the Release above.
    while counters.ended.load(Ordering::Acquire) != nr {
        timer::sleep(1_000_000).await;
    }
    match counters.failed.get() {
        Some(why) => Err(why.clone()),
        None => Ok(counted),
    }
}

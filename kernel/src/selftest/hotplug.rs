//! vcpus that go down and come back, many times, while others run. Over a suspend only `xl` can show it.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use evtchn::{Action, EndOfEvent};
use percpu::{CpuId, CpuSet, Masked, PerCpu};
use smp::{CallNode, Down, NotPosted, Outcome};
use xen_sys::hypercall::evtchn as hypercall;
use xen_sys::primitive::sync::atomic::{AtomicUsize, Ordering};

use super::Verdict;
use super::ports::{bind, settled, unbind};
use crate::loopback::Ends;
use crate::relax::Processor;
use crate::{cpus, events, executor, timer, wait, workload};

/// How often each set of vcpus goes down and comes back.
const ROUNDS: usize = 20;
/// How long it stays down, every third time: long enough for timers to be overslept.
const REST_NS: u64 = 30_000_000;

/// Each set of vcpus goes down and comes back while all beat: calls to them are run before that or refused, tasks made ready
/// for them wait, a rendezvous goes ahead without them, timers that were overslept fire, and no event is lost.
pub(super) async fn hotplug() -> Verdict {
    let nr = cpus::nr();
    if nr == 1 {
        return Err("needs two vcpus".into());
    }
    workload::start_beating();
    stays_with_its_device().await?;
    let last = CpuId::new(nr - 1).expect("there are not more vcpus than CPUs");
    let sets: [CpuSet; 3] = [
        [last].into_iter().collect(),
        CpuId::first(nr).filter(|cpu| cpu.index() % 2 == 1).collect(),
        // vcpu 0 too, which stays.
        CpuSet::first(nr),
    ];
    let callers = start_callers();
    for round in 0..ROUNDS {
        for set in &sets {
            one_round(set, round).await.map_err(|why| format!("round {round}, vcpus {set}: {why}"))?;
        }
    }
    // The beats of those that were down go on, and all calls are numbered without a gap.
    timer::sleep(1_000_000_000).await;
    // ORDERING: Relaxed, counts that are printed.
    let [run, refused] = [&callers.run, &callers.refused].map(|count| count.load(Ordering::Relaxed));
    match workload::wrong_and_beats_racy() {
        (0, beats) if beats > 0 && run > 0 => {
            Ok(format!("rounds={} calls={run} refused={refused}", ROUNDS * sets.len()))
        }
        (wrong, beats) => Err(format!("{wrong} events went wrong, {beats} beats, {run} calls")),
    }
}

/// What callers on all vcpus have seen.
#[derive(Default)]
struct Callers {
    run: AtomicUsize,
    refused: AtomicUsize,
}

/// Every vcpu calls every other one, and waits on the spot: a call that is neither run nor refused would hang it, and the next
/// rendezvous name it.
fn start_callers() -> Arc<Callers> {
    let callers = Arc::<Callers>::default();
    for cpu in CpuId::first(cpus::nr()) {
        let callers = callers.clone();
        executor::spawn_on(cpu, async move {
            loop {
                for to in CpuId::first(cpus::nr()).filter(|to| *to != cpu) {
                    let count = match cpus::mail().run_on(to, &Processor, |_| percpu::current()) {
                        Ok(ran_on) if ran_on == to => &callers.run,
                        Ok(ran_on) => panic!("a call for vcpu {to} ran on vcpu {ran_on}"),
                        Err(Down(down)) if down == to => &callers.refused,
                        Err(Down(down)) => panic!("a call for vcpu {to} was refused for vcpu {down}"),
                    };
                    count.fetch_add(1, Ordering::Relaxed); // ORDERING: Relaxed, a statistic.
                    timer::sleep(1_000_000).await;
                }
            }
        });
    }
    callers
}

async fn one_round(set: &CpuSet, round: usize) -> Result<(), String> {
    static NODE: CallNode = CallNode::new();
    let leaving: Vec<CpuId> = set.iter().filter(|cpu| *cpu != CpuId::BOOT).collect();
    let changes: Vec<u32> = leaving.iter().map(|cpu| cpus::changes(*cpu)).collect();
    let all_up = cpus::nr_up();
    cpus::take_down(set).await.map_err(|error| format!("{error}"))?;
    if cpus::nr_up() != all_up - leaving.len() || !cpus::is_up(CpuId::BOOT) {
        return Err(format!("{} vcpus are up", cpus::nr_up()));
    }

    let ran = Arc::new(AtomicUsize::new(0));
    for cpu in &leaving {
        let cpu = *cpu;
        match cpus::mail().call(cpu, &NODE, |_, _| (), 0) {
            Err(NotPosted::Down) => {}
            other => return Err(format!("a call to vcpu {cpu}, which is down: {other:?}")),
        }
        if cpus::state_racy(cpu) != cpus::State::Down {
            return Err(format!("vcpu {cpu} says that it is {}", cpus::state_racy(cpu)));
        }
        let ran = ran.clone();
        executor::spawn_on(cpu, async move {
            timer::sleep(1_000_000).await;
            ran.fetch_add(1, Ordering::Release); // ORDERING: Release, pairs with the Acquire below.
        });
    }
    let runs = PerCpu::new(cpus::nr(), |_| AtomicUsize::new(0));
    let mut nodes: Vec<CallNode> = CpuId::first(cpus::nr() - 1).map(|_| CallNode::new()).collect();
    let passed_over = cpus::mail().run_on_many(&CpuSet::first(cpus::nr()), &mut nodes, &Processor, &|_: &Masked| {
        runs.mine().fetch_add(1, Ordering::Relaxed); // ORDERING: Relaxed, passed on by the end of the call.
    });
    // ORDERING: Relaxed, as above.
    let right = runs.iter().all(|(cpu, runs)| runs.load(Ordering::Relaxed) == usize::from(cpus::is_up(cpu)));
    if passed_over != leaving.len() || !right {
        return Err(format!("a call to all passed over {passed_over} vcpus"));
    }
    cpus::rendezvous(|_, _| (Outcome::Cancelled, ())).map_err(|missing| format!("{missing}"))?;
    if round.is_multiple_of(3) {
        timer::sleep(REST_NS).await;
    }
    // ORDERING: Acquire, pairs with the Release above.
    if ran.load(Ordering::Acquire) != 0 {
        return Err("a task has run on a vcpu that is down".into());
    }

    for (cpu, changes) in leaving.iter().zip(changes) {
        cpus::bring_up(*cpu).await.map_err(|error| format!("vcpu {cpu}: {error}"))?;
        let now = cpus::changes(*cpu);
        if now != changes + 2 {
            return Err(format!("vcpu {cpu} has changed {now} times, and {changes} before"));
        }
    }
    // ORDERING: Acquire, as above.
    while ran.load(Ordering::Acquire) != leaving.len() {
        timer::sleep(1_000_000).await;
    }
    Ok(())
}

/// A vcpu that a device's port notifies stays up, until the port is moved; the port works there, and cannot be moved back to a
/// vcpu that is down.
async fn stays_with_its_device() -> Result<(), String> {
    let Ends { near: here, far: nr } = Ends::open()?;
    let cpu = CpuId::new(1).expect("below CpuId::MAX");
    let one: CpuSet = [cpu].into_iter().collect();
    let action = Action::new(EndOfEvent::AtOnce, 0, |_, _| {});
    let mut binding = bind(nr, cpu, &action)?;
    match cpus::take_down(&one).await {
        Err(error) if cpus::is_up(cpu) => crate::note!(Info, "{error}"),
        Err(error) => return Err(format!("it is down all the same: {error}")),
        Ok(()) => return Err(format!("vcpu {cpu} went down, and port {} is on it", nr.get())),
    }
    let mut moving = events::get().move_device(&mut binding, CpuId::BOOT).map_err(|error| format!("{error}"))?;
    while !moving.is_over().map_err(|error| format!("{error}"))? {
        wait::yield_now().await;
    }
    drop(moving);
    cpus::take_down(&one).await.map_err(|error| format!("{error}"))?;
    let before = settled(&action).await;
    hypercall::send(here).map_err(|error| format!("send: {error}"))?;
    let seen = settled(&action).await - before;
    if seen != 1 || events::get().move_device(&mut binding, cpu).is_ok() {
        return Err(format!("{seen} of 1 events came, or the port was moved to a vcpu that is down"));
    }
    unbind(binding).await?;
    cpus::bring_up(cpu).await.map_err(|error| format!("{error}"))
}

//! Device ports on a real Xen, looped back to ourselves: the peer is another vcpu of ours, as rogue as a test wants it.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use evtchn::{Action, BURST, Binding, EndOfEvent, PortNr, end_delay_ns};
use percpu::CpuId;
use xen_sys::hypercall::evtchn as hypercall;
use xen_sys::primitive::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Verdict;
use crate::loopback::Ends;
use crate::{cpus, events, executor, timer, wait};

/// Long enough for anything that is under way to come.
const SETTLE_NS: u64 = 50_000_000;

pub(super) fn bind(nr: PortNr, cpu: CpuId, action: &Arc<Action>) -> Result<Binding, String> {
    events::get().bind_device(nr, cpu, action).map_err(|error| format!("{error}"))
}

pub(super) async fn unbind(binding: Binding) -> Result<(), String> {
    let mut unbinding = events::get().unbind_device(binding).map_err(|error| format!("{error}"))?;
    while !unbinding.is_over() {
        wait::yield_now().await;
    }
    Ok(())
}

fn last_cpu() -> CpuId {
    CpuId::new(cpus::nr() - 1).expect("there are not more vcpus than CPUs")
}

/// The count of `action` once it stands still.
pub(super) async fn settled(action: &Action) -> u64 {
    let mut before = u64::MAX;
    while action.count() != before {
        before = action.count();
        timer::sleep(SETTLE_NS).await;
    }
    before
}

/// Every send is seen, on the vcpu that the port is bound to; none after it is unbound. What the action owned is freed then.
pub(super) async fn port() -> Verdict {
    const SENDS: u64 = 500;
    static ELSEWHERE: AtomicU64 = AtomicU64::new(0);
    let Ends { near: here, far: nr } = Ends::open()?;
    let cpu = last_cpu();
    let owned = Arc::new(());
    let in_handler = owned.clone();
    let action = Action::new(EndOfEvent::AtOnce, 0, move |_, _| {
        let _alive = &in_handler;
        // ORDERING: Relaxed, a count that is looked at when all is quiet.
        ELSEWHERE.fetch_add(u64::from(percpu::current() != cpu), Ordering::Relaxed);
    });
    let binding = bind(nr, cpu, &action)?;
    // Binding an interdomain port makes it pending once.
    let first = settled(&action).await;
    for sent in 1..=SENDS {
        hypercall::send(here).map_err(|error| format!("send: {error}"))?;
        while action.count() < first + sent {
            wait::yield_now().await;
        }
    }
    let seen = settled(&action).await - first;
    unbind(binding).await?;
    let sent_late = hypercall::send(here);
    let late = settled(&action).await - first - seen;
    drop(action);
    // ORDERING: Relaxed, all is quiet.
    let elsewhere = ELSEWHERE.load(Ordering::Relaxed);
    if (seen, late, elsewhere, Arc::strong_count(&owned)) == (SENDS, 0, 0, 1) {
        Ok(format!("sends={SENDS}"))
    } else {
        let left = Arc::strong_count(&owned) - 1;
        Err(format!(
            "{SENDS} sent, {seen} seen, {late} after the unbind ({sent_late:?}), {elsewhere} on other vcpus, {left} not freed"
        ))
    }
}

/// Numbers that a peer counts up before each send, and what the handler has found of them.
struct Numbered {
    sent: AtomicU64,
    found: AtomicU64,
    /// Handlers that began while another had not ended, and runs on a vcpu to which the port was not bound.
    wrong: AtomicU64,
    running: AtomicBool,
    over: AtomicBool,
    ended: AtomicBool,
}

impl Numbered {
    const fn new() -> Numbered {
        Numbered {
            sent: AtomicU64::new(0),
            found: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            running: AtomicBool::new(false),
            over: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        }
    }

    fn action(&'static self) -> Arc<Action> {
        Action::new(EndOfEvent::AtOnce, 0, |_, _| {
            // ORDERING: Acquire and Release, pair with each other: two runs are not at once.
            let at_once = self.running.swap(true, Ordering::Acquire);
            // ORDERING: Relaxed all: numbers that are compared when all is quiet; the event itself orders `sent` before this.
            self.wrong.fetch_add(u64::from(at_once), Ordering::Relaxed);
            self.found.fetch_max(self.sent.load(Ordering::Relaxed), Ordering::Relaxed);
            self.running.store(false, Ordering::Release);
        })
    }

    /// Sends on `port` without a pause until it is told to stop, then says that it has. Lets its vcpu do other things now and then.
    async fn storm(&'static self, port: u32) {
        // ORDERING: Relaxed, a flag; nothing is read because of it.
        while !self.over.load(Ordering::Relaxed) {
            for _ in 0..64 {
                // ORDERING: Relaxed, as in `action`.
                self.sent.fetch_add(1, Ordering::Relaxed);
                // A port that we have open can be sent on.
                let _ = hypercall::send(port);
            }
            wait::yield_now().await;
        }
        self.ended.store(true, Ordering::Release); // ORDERING: Release, pairs with the Acquire in `stop`.
    }

    async fn stop(&self) {
        self.over.store(true, Ordering::Relaxed); // ORDERING: Relaxed, as in `storm`.
        // ORDERING: Acquire, pairs with the Release in `storm`.
        while !self.ended.load(Ordering::Acquire) {
            timer::sleep(1_000_000).await;
        }
    }

    fn sent_racy(&self) -> u64 {
        self.sent.load(Ordering::Relaxed) // ORDERING: Relaxed, as in `action`.
    }

    fn found_racy(&self) -> u64 {
        self.found.load(Ordering::Relaxed) // ORDERING: Relaxed, as in `action`.
    }
}

/// A port goes round all vcpus while its peer, on the last one, sends without a pause: the last number that was sent is found,
/// no two vcpus handle it at once, and events come on each vcpu before the port goes on.
pub(super) async fn affinity() -> Verdict {
    const ROUNDS: usize = 20;
    static NUMBERS: Numbered = Numbered::new();
    if cpus::nr() == 1 {
        return Err("needs two vcpus".into());
    }
    let Ends { near: here, far: nr } = Ends::open()?;
    let action = NUMBERS.action();
    let mut binding = bind(nr, CpuId::BOOT, &action)?;
    executor::spawn_on(last_cpu(), NUMBERS.storm(here));
    let mut moves = 0;
    for _ in 0..ROUNDS {
        for cpu in CpuId::first(cpus::nr()) {
            let mut moving = events::get().move_device(&mut binding, cpu).map_err(|error| format!("{error}"))?;
            while !moving.is_over().map_err(|error| format!("{error}"))? {
                wait::yield_now().await;
            }
            drop(moving);
            moves += 1;
            // What is sent from here on has to be found there.
            let sent = NUMBERS.sent_racy();
            while NUMBERS.found_racy() <= sent {
                wait::yield_now().await;
            }
        }
    }
    NUMBERS.stop().await;
    let runs = settled(&action).await;
    let (sent, found) = (NUMBERS.sent_racy(), NUMBERS.found_racy());
    let wrong = NUMBERS.wrong.load(Ordering::Relaxed); // ORDERING: Relaxed, all is quiet.
    unbind(binding).await?;
    if found == sent && wrong == 0 {
        Ok(format!("moves={moves} sends={sent} runs={runs}"))
    } else {
        Err(format!("after {moves} moves {sent} sent, {found} found, {wrong} runs at once with another"))
    }
}

/// The last vcpu fires at a port of vcpu 0 without end. One turn of vcpu 0's executor lets [`BURST`] events in and no more; the
/// timer, other tasks and another port of vcpu 0 go on; and the last event is not lost.
pub(super) async fn storm() -> Verdict {
    const ROUNDS: u64 = 100;
    /// Sends that the rogue makes when its port is mute.
    const IN_VAIN: u64 = 1000;
    static NUMBERS: Numbered = Numbered::new();
    static TASK: AtomicU64 = AtomicU64::new(0);
    static MUTED: AtomicBool = AtomicBool::new(false);
    if cpus::nr() == 1 {
        return Err("needs two vcpus".into());
    }
    let Ends { near: here, far: nr } = Ends::open()?;
    let rogue = NUMBERS.action();
    let binding = bind(nr, CpuId::BOOT, &rogue)?;
    let Ends { near: beside_here, far: beside_nr } = Ends::open()?;
    let beside = Action::new(EndOfEvent::AtOnce, 1, |_, _| ());
    let beside_binding = bind(beside_nr, CpuId::BOOT, &beside)?;
    let (rogue_first, beside_first) = (settled(&rogue).await, settled(&beside).await);
    let times_muted = || events::get().counts_racy(CpuId::BOOT).muted;

    // In this turn the last vcpu sends each event when the one before has been handled, until that is no use any more.
    let counted = rogue.clone();
    executor::spawn_on(last_cpu(), async move {
        let (before, mut sends) = (times_muted(), 0);
        while times_muted() == before {
            sends += 1;
            let _ = hypercall::send(here);
            while counted.count() < rogue_first + sends && times_muted() == before {
                core::hint::spin_loop();
            }
        }
        for _ in 0..IN_VAIN {
            let _ = hypercall::send(here);
        }
        // ORDERING: Release, pairs with the Acquire below: all has been sent.
        MUTED.store(true, Ordering::Release);
        NUMBERS.storm(here).await;
    });
    // No await in here: it is one turn. ORDERING: Acquire, pairs with the Release above.
    while !MUTED.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    let in_one_turn = rogue.count() - rogue_first;

    // ORDERING: Relaxed all below, counts and flags.
    executor::spawn_here(async {
        while !NUMBERS.over.load(Ordering::Relaxed) {
            TASK.fetch_add(1, Ordering::Relaxed);
            wait::yield_now().await;
        }
    });
    for round in 1..=ROUNDS {
        let (task, runs) = (TASK.load(Ordering::Relaxed), rogue.count());
        hypercall::send(beside_here).map_err(|error| format!("send: {error}"))?;
        while beside.count() < beside_first + round || TASK.load(Ordering::Relaxed) == task || rogue.count() == runs {
            timer::sleep(100_000).await;
        }
    }
    NUMBERS.stop().await;
    let runs = settled(&rogue).await;
    let (sent, found, muted) = (NUMBERS.sent_racy(), NUMBERS.found_racy(), times_muted());
    unbind(binding).await?;
    unbind(beside_binding).await?;
    if in_one_turn == u64::from(BURST) && found == sent {
        Ok(format!("sends={sent} runs={runs} muted={muted} in_one_turn={in_one_turn}"))
    } else {
        Err(format!("{sent} sent, {found} found, {in_one_turn} handled in one turn, muted {muted} times"))
    }
}

/// A port whose events end late: whatever its peer sends, there is one run for each end. Who sends for nothing is put off.
pub(super) async fn late() -> Verdict {
    const ENDS: u64 = 20;
    const SENDS: u64 = 50;
    let Ends { near: here, far: nr } = Ends::open()?;
    let action = Action::new(EndOfEvent::Late, 0, |_, _| ());
    let binding = bind(nr, last_cpu(), &action)?;
    let first = settled(&action).await;
    for ended in 0..ENDS {
        for _ in 0..SENDS {
            hypercall::send(here).map_err(|error| format!("send: {error}"))?;
        }
        if action.count() != first + ended {
            return Err(format!("{} runs after {ended} ends", action.count() - first));
        }
        events::get().end_of_event(&action, percpu::vcpu_info());
        while action.count() == first + ended {
            wait::yield_now().await;
        }
    }
    // What it sent while the last event was not ended.
    hypercall::send(here).map_err(|error| format!("send: {error}"))?;
    events::get().end_of_event(&action, percpu::vcpu_info());
    let runs = settled(&action).await - first;
    let put_off_ns = (0..5).map(|_| end_delay_ns(&action, false)).max().unwrap_or(0);
    unbind(binding).await?;
    if runs == ENDS + 1 && put_off_ns > 0 {
        Ok(format!("ends={ENDS} sends={}", ENDS * SENDS + 1))
    } else {
        Err(format!("{runs} runs for {} ends, put off by {put_off_ns} ns", ENDS + 1))
    }
}

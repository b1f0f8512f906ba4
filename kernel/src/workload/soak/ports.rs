//! Ports from this domain to itself that wander between vcpus while all send on them.
//!
//! A send takes the channel's next number first; a handler notes the newest number that it finds. So events may coalesce, and one that is
//! lost shows all the same: the number of a send that Xen has taken is then found by nobody, however long one waits. That is
//! looked for before each move of a port, while nobody sends on it, as the next event would make up for a lost one; after it, while all
//! do; and at the end. A storm of sends has the port muted now and then
//! (`evtchn/src/storm.rs`), which may delay an event and not lose it.
//!
//! One task on vcpu 0 owns them all: it moves them, takes them off vcpus that are about to go down, and makes them anew in a new life
//! of the domain, where it sends once itself for what was under way in the old one. What others send meanwhile on a port of the
//! old life is refused by its incarnation, and counted.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use evtchn::{Action, Binding, EndOfEvent, Incarnation, Port, PortNr, SendOutcome};
use percpu::{CpuId, CpuSet, PerCpu};
use xen_sys::primitive::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::{Grace, LOOK_NS, soak};
use crate::loopback::Ends;
use crate::workload::random::Random;
use crate::{cpus, events, timer};

/// No more channels than these, or than there are vcpus.
const MOST: usize = 16;
/// Between two moves.
const BETWEEN_NS: core::ops::RangeInclusive<u64> = 1_000_000..=20_000_000;
/// How often it is looked whether a move is over. Whoever does nothing else keeps the processor from who it waits for.
const MOVE_LOOK_NS: u64 = 100_000;
/// A port that cannot be made for so many tries, [`LOOK_NS`] apart, never will be.
const TRIES: u32 = 30_000;
/// How long vcpus that leave wait for the ports to be moved. Then they are refused, and asked again.
const LEAVE_LIMIT_NS: u64 = 10_000_000_000;

/// One channel: what is sent on its near end runs the handler of its far one. Suspend: *kept*, but for the port.
#[derive(Default)]
struct Channel {
    /// The near end: its number, and above it the incarnation. Written by the task that owns it.
    near: AtomicU64,
    /// The last number that was taken for a send; the highest of a send that Xen took; the highest that a handler has found.
    sent: AtomicU64,
    wanted: AtomicU64,
    found: AtomicU64,
    runs: AtomicU64,
    running: AtomicBool,
    /// Nobody is to send. Written by the task that owns it.
    hushed: AtomicBool,
    /// The vcpu that it notifies, and the one that it is being moved to. Written by the task that owns it.
    home: AtomicUsize,
    next_home: AtomicUsize,
}

/// All of them.
pub(super) struct Ports {
    channels: Vec<Arc<Channel>>,
    /// vcpus that are about to go down. Written on vcpu 0.
    leaving: PerCpu<AtomicBool>,
    moves: AtomicU64,
    lives: AtomicU64,
    stale: AtomicU64,
}

impl Ports {
    pub(super) fn new(nr_cpus: usize) -> Ports {
        Ports {
            channels: (0..nr_cpus.clamp(2, MOST)).map(|_| Arc::default()).collect(),
            leaving: PerCpu::new(nr_cpus, |_| AtomicBool::new(false)),
            moves: AtomicU64::new(0),
            lives: AtomicU64::new(0),
            stale: AtomicU64::new(0),
        }
    }

    /// How many channels there are.
    pub(super) fn nr(&self) -> usize {
        self.channels.len()
    }

    /// Sends once on channel `number`. Context: task.
    pub(super) fn send(&self, number: usize) {
        let channel = &self.channels[number];
        // ORDERING: Relaxed, a wish; one more send does no harm.
        let Some(near) = channel.near().filter(|_| !channel.hushed.load(Ordering::Relaxed)) else { return };
        // ORDERING: Relaxed both: the event itself orders the first before the handler's look; the second is compared with what
        //   a handler finds later.
        let number = channel.sent.fetch_add(1, Ordering::Relaxed) + 1;
        match events::get().send(near) {
            SendOutcome::Sent => drop(channel.wanted.fetch_max(number, Ordering::Relaxed)),
            // The domain has begun a new life, in which its port is not made yet. ORDERING: Relaxed, statistics.
            SendOutcome::Stale => drop(self.stale.fetch_add(1, Ordering::Relaxed)),
            other => panic!("soak: send on port {}: {other:?}", near.nr),
        }
    }

    /// Waits until the handlers have found what has been sent. Context: task on vcpu 0; nobody sends any more.
    pub(super) async fn drained(&self) {
        for number in 0..self.nr() {
            while !self.found_all(number).await {
                timer::sleep(LOOK_NS).await;
            }
        }
    }

    /// Takes the ports off `cpus`, and keeps them away until [`Ports::nobody_leaves`]. Context: task on vcpu 0.
    pub(super) async fn leave(&self, cpus: &CpuSet) {
        // ORDERING: Relaxed here and below, written and read on vcpu 0.
        cpus.iter().for_each(|cpu| self.leaving.on(cpu).store(true, Ordering::Relaxed));
        let is_there =
            |home: &AtomicUsize| CpuId::new(home.load(Ordering::Relaxed)).is_some_and(|on| cpus.contains(on));
        let moved = async {
            while self.channels.iter().any(|channel| is_there(&channel.home) || is_there(&channel.next_home)) {
                timer::sleep(LOOK_NS).await;
            }
        };
        if timer::within(LEAVE_LIMIT_NS, moved).await.is_err() {
            crate::note!(Warn, "soak: its ports have not left vcpus {cpus}");
        }
    }

    /// See [`Ports::leave`].
    pub(super) fn nobody_leaves(&self) {
        self.leaving.iter().for_each(|(_, leaving)| leaving.store(false, Ordering::Relaxed)); // ORDERING: Relaxed, vcpu 0's.
    }

    fn may_be_on(&self, cpu: CpuId) -> bool {
        cpus::is_up(cpu) && !self.leaving.on(cpu).load(Ordering::Relaxed) // ORDERING: Relaxed, vcpu 0's.
    }

    fn choose(&self, random: &mut Random) -> CpuId {
        let able: Vec<CpuId> = CpuId::first(cpus::nr()).filter(|cpu| self.may_be_on(*cpu)).collect();
        able.get(random.below(able.len())).copied().unwrap_or(CpuId::BOOT)
    }

    /// [`Ports::found_all`] of a channel on which nobody sends meanwhile.
    async fn found_all_in_silence(&self, number: usize) -> bool {
        let hushed = &self.channels[number].hushed;
        hushed.store(true, Ordering::Relaxed); // ORDERING: Relaxed, as in `send`.
        let found = self.found_all(number).await;
        hushed.store(false, Ordering::Relaxed); // ORDERING: Relaxed, as in `send`.
        found
    }

    /// Waits until a handler of channel `number` has found what was sent by now. `false`: the domain has begun a new life meanwhile.
    async fn found_all(&self, number: usize) -> bool {
        let channel = &self.channels[number];
        // The life that its port was made in: until it is made anew after a restore nothing can be found.
        let Some(life) = channel.near().map(|port| port.incarnation) else { return false };
        // ORDERING: Relaxed all, numbers that only grow; the grace is what orders a send before the last look.
        let wanted = channel.wanted.load(Ordering::Relaxed);
        let grace = Grace::begin();
        loop {
            // First whether it is late, then whether it has come.
            let is_late = grace.is_over();
            let found = channel.found.load(Ordering::Relaxed);
            if found >= wanted {
                return true;
            }
            if life != events::get().incarnation() {
                return false;
            }
            let home = channel.home.load(Ordering::Relaxed);
            assert!(
                !is_late,
                "soak: channel {number}, on vcpu {home}: send {wanted} is lost, {found} was the last found"
            );
            timer::sleep(LOOK_NS).await;
        }
    }
}

impl Channel {
    fn near(&self) -> Option<Port> {
        // ORDERING: Relaxed, one word. A port that is an old one by now is refused.
        let word = self.near.load(Ordering::Relaxed);
        let nr = PortNr::new(u32::try_from(word & u64::from(u32::MAX)).ok()?)?;
        Some(Port { nr, incarnation: Incarnation::new((word >> 32) as u32) })
    }

    fn set_home(&self, home: CpuId, next: CpuId) {
        // ORDERING: Relaxed both, written and read on vcpu 0.
        self.home.store(home.index(), Ordering::Relaxed);
        self.next_home.store(next.index(), Ordering::Relaxed);
    }

    fn action(self: &Arc<Channel>, number: usize) -> Arc<Action> {
        let channel = self.clone();
        Action::new(EndOfEvent::AtOnce, number, move |_, _| {
            // ORDERING: Acquire and Release, pair with each other: two runs are not at once.
            let at_once = channel.running.swap(true, Ordering::Acquire);
            assert!(!at_once, "soak: channel {number}: a handler runs on two vcpus at once");
            // ORDERING: Relaxed all: the event orders `sent` before this, the rest only grows.
            channel.found.fetch_max(channel.sent.load(Ordering::Relaxed), Ordering::Relaxed);
            channel.runs.fetch_add(1, Ordering::Relaxed);
            channel.running.store(false, Ordering::Release);
        })
    }
}

/// Owns the ports for ever. Context: task on vcpu 0.
pub(super) async fn tend(ports: &'static Ports, mut random: Random) {
    let actions: Vec<Arc<Action>> =
        ports.channels.iter().enumerate().map(|(number, channel)| channel.action(number)).collect();
    let mut bindings: Vec<Option<Binding>> = ports.channels.iter().map(|_| None).collect();
    let mut tries = 0;
    loop {
        let life = events::get().incarnation();
        let mut made_all = true;
        for (number, binding) in bindings.iter_mut().enumerate() {
            if binding.as_ref().is_none_or(|bound| bound.port().incarnation != life) {
                match make(ports, number, &actions[number], ports.choose(&mut random)) {
                    Ok(bound) => *binding = Some(bound),
                    Err(why) => {
                        tries += 1;
                        assert!(tries < TRIES, "soak: channel {number}: {why}");
                        made_all = false;
                    }
                }
            }
        }
        if !made_all {
            timer::sleep(LOOK_NS).await;
            continue;
        }
        tries = 0;
        for (number, binding) in bindings.iter_mut().enumerate() {
            if let Some(binding) = binding.as_mut().filter(|binding| !ports.may_be_on(binding.cpu())) {
                move_to(ports, number, binding, ports.choose(&mut random)).await;
            }
        }
        timer::sleep(random.within(BETWEEN_NS)).await;
        let (number, to) = (random.below(ports.nr()), ports.choose(&mut random));
        if !soak().is_stopping()
            && ports.found_all_in_silence(number).await
            && let Some(binding) = bindings[number].as_mut().filter(|_| ports.may_be_on(to))
        {
            move_to(ports, number, binding, to).await;
            ports.found_all(number).await;
        }
    }
}

/// Makes channel `number` in this life of the domain, and sends on it once.
fn make(ports: &Ports, number: usize, action: &Arc<Action>, cpu: CpuId) -> Result<Binding, String> {
    let channel = &ports.channels[number];
    let (ends, binding) = Ends::open_bound(cpu, action)?;
    channel.set_home(cpu, cpu);
    let word = u64::from(binding.port().incarnation.get()) << 32 | u64::from(ends.near);
    channel.near.store(word, Ordering::Relaxed); // ORDERING: Relaxed, one word.
    ports.lives.fetch_add(1, Ordering::Relaxed); // ORDERING: Relaxed, statistics.
    ports.send(number);
    Ok(binding)
}

/// Moves a port; where the domain begins a new life meanwhile, it is gone.
async fn move_to(ports: &Ports, number: usize, binding: &mut Binding, to: CpuId) {
    let channel = &ports.channels[number];
    channel.set_home(binding.cpu(), to);
    // Refused: the domain has begun a new life, or the vcpu is not ready in this one yet.
    if let Ok(mut moving) = events::get().move_device(binding, to) {
        while matches!(moving.is_over(), Ok(false)) {
            timer::sleep(MOVE_LOOK_NS).await;
        }
        drop(moving);
        ports.moves.fetch_add(1, Ordering::Relaxed); // ORDERING: Relaxed, statistics.
    }
    channel.set_home(binding.cpu(), binding.cpu());
}

/// What has been done so far, as fields.
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // ORDERING: Relaxed, statistics.
        let sum = |count: fn(&Channel) -> &AtomicU64| -> u64 {
            self.channels.iter().map(|channel| count(channel).load(Ordering::Relaxed)).sum()
        };
        let (sends, runs) = (sum(|channel| &channel.sent), sum(|channel| &channel.runs));
        let [moves, lives, stale] = [&self.moves, &self.lives, &self.stale].map(|count| count.load(Ordering::Relaxed));
        let coalesced = sends.saturating_sub(stale + runs);
        write!(f, "sends={sends} runs={runs} coalesced={coalesced} stale={stale} moves={moves} made={lives}")
    }
}

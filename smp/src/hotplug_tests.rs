//! Who is up, by the word of the host's threads that play CPUs.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use percpu::{hosted, mask_upcalls};
use xen_sys::abi::arch::VcpuGuestContext;

use super::*;
use crate::bring_up::{self, VcpuInfoPlace};
use crate::tests::{Alone, Noted};
use crate::watch::Limits;

/// Xen, which lets a vcpu that goes down return when it is brought up, and takes no call for a vcpu that it has taken before.
struct Xen {
    up: PerCpu<AtomicBool>,
    placed: PerCpu<AtomicBool>,
    initialised: PerCpu<AtomicBool>,
    refuses: Mutex<Option<Operation>>,
    /// Who goes down is not stopped.
    is_slow: AtomicBool,
    downs: Mutex<Vec<CpuId>>,
}

impl Vcpus for Xen {
    unsafe fn register_vcpu_info(&self, cpu: CpuId, _place: VcpuInfoPlace) -> Result<(), Errno> {
        self.may(Operation::RegisterVcpuInfo)?;
        if self.placed.on(cpu).swap(true, Relaxed) { Err(Errno::EINVAL) } else { Ok(()) }
    }

    unsafe fn initialise(&self, cpu: CpuId, _context: &VcpuGuestContext) -> Result<(), Errno> {
        self.may(Operation::Initialise)?;
        if self.initialised.on(cpu).swap(true, Relaxed) { Err(Errno::EEXIST) } else { Ok(()) }
    }

    fn up(&self, cpu: CpuId) -> Result<(), Errno> {
        self.may(Operation::Up)?;
        assert!(self.placed.on(cpu).load(Relaxed) && self.initialised.on(cpu).load(Relaxed));
        self.up.on(cpu).store(true, Release);
        Ok(())
    }

    fn down(&self, cpu: CpuId) -> Result<(), Errno> {
        self.downs.lock().expect("no test panics in here").push(cpu);
        while self.is_slow.load(Relaxed) {
            std::thread::yield_now();
        }
        self.up.on(cpu).store(false, Release);
        while !self.up.on(cpu).load(Acquire) {
            std::thread::yield_now();
        }
        Ok(())
    }

    fn is_up(&self, cpu: CpuId) -> Result<bool, Errno> {
        Ok(self.up.on(cpu).load(Acquire))
    }
}

impl Xen {
    fn may(&self, operation: Operation) -> Result<(), Errno> {
        let refused = *self.refuses.lock().expect("no test panics in here") == Some(operation);
        if refused { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    fn refuse(&self, operation: Option<Operation>) {
        *self.refuses.lock().expect("no test panics in here") = operation;
    }

    /// A new life of the domain, in which nothing is left of the old one.
    fn forget(&self) {
        for all in [&self.placed, &self.initialised, &self.up] {
            all.iter().for_each(|(_, flag)| flag.store(false, Relaxed));
        }
    }
}

struct World {
    rendezvous: Rendezvous,
    hotplug: Hotplug,
    mail: Mail<Noted>,
    xen: Xen,
    over: AtomicBool,
}

fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("tests use small numbers")
}

fn set(cpus: &[usize]) -> CpuSet {
    cpus.iter().map(|n| cpu(*n)).collect()
}

/// A clock on which time is up at the second look, or never.
struct Looks(AtomicU32);

impl Clock for Looks {
    fn now_ns(&self) -> u64 {
        self.0.fetch_add(1, Relaxed).into()
    }
}

/// One that stands still until somebody is in `VCPUOP_down`.
struct SinceDown<'a>(&'a Xen, Looks);

impl Clock for SinceDown<'_> {
    fn now_ns(&self) -> u64 {
        if self.0.downs.lock().expect("no test panics in here").is_empty() { 0 } else { self.1.now_ns() }
    }
}

impl World {
    fn new(nr: usize) -> World {
        World {
            rendezvous: Rendezvous::new(nr, Patience(0)),
            hotplug: Hotplug::new(nr),
            mail: Mail::of_cpus_down(nr, Noted::default()),
            xen: Xen {
                up: PerCpu::new(nr, |cpu| AtomicBool::new(cpu == CpuId::BOOT)),
                placed: PerCpu::new(nr, |_| AtomicBool::new(false)),
                initialised: PerCpu::new(nr, |_| AtomicBool::new(false)),
                refuses: Mutex::new(None),
                is_slow: AtomicBool::new(false),
                downs: Mutex::new(Vec::new()),
            },
            over: AtomicBool::new(false),
        }
    }

    fn up(&self, n: usize, life: u32) -> Result<WayUp, Errno> {
        let way = self.hotplug.way_up(cpu(n), life);
        self.hotplug.comes_up(cpu(n));
        let (place, context) = (VcpuInfoPlace { mfn: 1, offset: 64 }, VcpuGuestContext::zeroed());
        let started = match way {
            WayUp::Restart => bring_up::restart(&self.xen, &self.rendezvous, cpu(n)),
            // SAFETY: nothing is started.
            WayUp::StartPlaced => unsafe { bring_up::start_placed(&self.xen, &self.rendezvous, cpu(n), &context) },
            // SAFETY: as above.
            WayUp::Start => unsafe { bring_up::start(&self.xen, &self.rendezvous, cpu(n), place, &context) },
        };
        match started {
            Ok(()) => Ok(way),
            Err(error) => {
                self.hotplug.did_not_start(&error, life);
                Err(error.errno)
            }
        }
    }

    #[expect(clippy::result_large_err, reason = "as what it tests")]
    fn down(&self, cpus: &CpuSet, limit_ns: u64, check: Result<(), u8>) -> Result<Result<(), u8>, Missing> {
        self.down_by(&Looks(AtomicU32::new(0)), cpus, limit_ns, check)
    }

    #[expect(clippy::result_large_err, reason = "as what it tests")]
    fn down_by(
        &self,
        clock: &impl Clock,
        cpus: &CpuSet,
        limit_ns: u64,
        check: Result<(), u8>,
    ) -> Result<Result<(), u8>, Missing> {
        let limits = Limits::only(limit_ns);
        let lead = Lead { mail: &self.mail, gate: &Alone, clock, limits, overdue: &|_| () };
        self.hotplug.take_down(&self.rendezvous, &lead, &self.xen, (cpus, 7), |_| check)
    }

    /// A CPU, from its start to the end of the test.
    fn run(&self, n: usize) {
        let _on = hosted::enter(cpu(n));
        while !self.xen.up.mine().load(Acquire) {
            std::thread::yield_now();
        }
        self.mail.serve(&mask_upcalls());
        while !self.over.load(Relaxed) {
            if self.rendezvous.is_requested() {
                let masked = mask_upcalls();
                drop(self.rendezvous.park(&masked, &Alone, &self.mail));
                if self.hotplug.is_leaving() {
                    assert_eq!(self.hotplug.go_down(&self.mail, &masked, &self.xen), Ok(()));
                    self.mail.serve(&masked);
                }
            }
            std::thread::yield_now();
        }
    }
}

#[test]
fn down_together_and_up_by_the_way_that_the_life_asks_for() {
    let world = World::new(4);
    std::thread::scope(|scope| {
        (1..4).for_each(|n| {
            drop(scope.spawn({
                let world = &world;
                move || world.run(n)
            }))
        });
        let _on = hosted::enter(CpuId::BOOT);
        for n in 1..4 {
            assert_eq!(world.up(n, 7), Ok(WayUp::Start), "it never ran");
        }
        assert_eq!(world.hotplug.nr_up(), 4);
        // vCPU 0 and one that is not there are passed over.
        assert_eq!(world.down(&set(&[0, 1, 3, 9]), u64::MAX, Ok(())), Ok(Ok(())));
        let mut downs = world.xen.downs.lock().expect("no test panics in there").split_off(0);
        downs.sort();
        assert_eq!(downs, [cpu(1), cpu(3)]);
        assert_eq!(CpuId::first(4).map(|cpu| world.hotplug.is_up(cpu)).collect::<Vec<_>>(), [true, false, true, false]);
        assert_eq!(world.rendezvous.waited_for().map(|(cpu, _)| cpu).collect::<Vec<_>>(), [cpu(2)]);
        assert_eq!([1, 2].map(|n| world.hotplug.changes(cpu(n))), [2, 1]);
        // Once more is nothing to do.
        assert_eq!(world.down(&set(&[1, 3]), u64::MAX, Ok(())), Ok(Ok(())));
        assert!(world.xen.downs.lock().expect("no test panics in there").is_empty());
        assert_eq!(world.hotplug.way_up(cpu(3), 8), WayUp::Start, "a later life");
        world.xen.refuse(Some(Operation::Up));
        assert_eq!(world.up(1, 7), Err(Errno::ENOMEM));
        assert!(!world.hotplug.is_up(cpu(1)));
        world.xen.refuse(None);
        assert_eq!([1, 3].map(|n| world.up(n, 7)), [Ok(WayUp::Restart); 2]);
        world.over.store(true, Relaxed);
    });
}

/// What Xen has taken it would refuse; in a later life of the domain it has taken nothing.
#[test]
fn a_start_that_failed_goes_on_from_there() {
    const WAYS: [(Operation, WayUp); 3] = [
        (Operation::RegisterVcpuInfo, WayUp::Start),
        (Operation::Initialise, WayUp::StartPlaced),
        (Operation::Up, WayUp::Restart),
    ];
    for (refused, way) in WAYS {
        let world = World::new(2);
        world.xen.refuse(Some(refused));
        for _ in 0..2 {
            assert_eq!(world.up(1, 7), Err(Errno::ENOMEM), "{refused}");
            assert_eq!((world.hotplug.is_up(cpu(1)), world.rendezvous.waited_for().count()), (false, 0));
        }
        world.xen.refuse(None);
        assert_eq!(world.up(1, 7), Ok(way));
    }
    let world = World::new(2);
    for life in [7, 8] {
        for (refused, way) in WAYS {
            world.xen.refuse(Some(refused));
            assert_eq!(world.up(1, life), Err(Errno::ENOMEM));
            assert_eq!(world.hotplug.way_up(cpu(1), life), way);
        }
        world.xen.forget();
        assert_eq!(world.hotplug.way_up(cpu(1), life + 1), WayUp::Start);
    }
}

/// vCPU 0 is told who, and not kept: it may ask again, while no rendezvous is held without those that leave.
#[test]
fn who_does_not_go_down_is_named_and_waited_for_again() {
    let world = World::new(3);
    std::thread::scope(|scope| {
        (1..3).for_each(|n| {
            drop(scope.spawn({
                let world = &world;
                move || world.run(n)
            }))
        });
        let _on = hosted::enter(CpuId::BOOT);
        for n in 1..3 {
            assert_eq!(world.up(n, 7), Ok(WayUp::Start));
        }
        world.xen.is_slow.store(true, Relaxed);
        let clock = SinceDown(&world.xen, Looks(AtomicU32::new(0)));
        let missing = world.down_by(&clock, &set(&[1]), 5, Ok(())).expect_err("Xen does not stop it");
        assert_eq!(missing, Missing { awaited: Awaited::GoingDown, cpus: set(&[1]) });
        let standing = || (world.hotplug.is_up(cpu(1)), world.hotplug.is_down(cpu(1)));
        assert_eq!(standing(), (false, false));
        assert_eq!(world.down(&set(&[1]), 1, Ok(())).map_err(|missing| missing.awaited), Err(Awaited::GoingDown));
        while !world.rendezvous.all_have_left() {
            std::thread::yield_now();
        }
        let missing = world.down(&set(&[2]), 5, Ok(())).expect_err("it comes to no rendezvous");
        assert!(missing.awaited == Awaited::Arriving && missing.cpus.contains(cpu(1)), "{missing}");
        assert_eq!(standing(), (false, false));
        world.xen.is_slow.store(false, Relaxed);
        while world.xen.is_up(cpu(1)) == Ok(true) {
            std::thread::yield_now();
        }
        // Taken note of by whoever is taken down next.
        assert_eq!(world.down(&set(&[2]), u64::MAX, Ok(())), Ok(Ok(())));
        assert_eq!(standing(), (false, true));
        assert_eq!(world.down(&set(&[1]), u64::MAX, Ok(())), Ok(Ok(())));
        assert_eq!([1, 2].map(|n| world.up(n, 7)), [Ok(WayUp::Restart); 2]);
        world.over.store(true, Relaxed);
    });
}

#[test]
fn what_keeps_them_up_leaves_all_as_it_was() {
    let world = World::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| world.run(1));
        let _on = hosted::enter(CpuId::BOOT);
        assert_eq!(world.up(1, 7), Ok(WayUp::Start));
        assert_eq!(world.down(&set(&[1]), u64::MAX, Err(5)), Ok(Err(5)));
        assert!(world.hotplug.is_up(cpu(1)));
        world.over.store(true, Relaxed);
    });
    // It comes to no rendezvous any more.
    let _on = hosted::enter(CpuId::BOOT);
    let missing = world.down(&set(&[1]), 1, Ok(())).expect_err("nobody comes");
    assert_eq!(missing.cpus, set(&[1]));
    assert!(world.hotplug.is_up(cpu(1)) && world.xen.downs.lock().expect("no test panics in there").is_empty());
}

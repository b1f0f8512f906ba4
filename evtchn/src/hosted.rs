//! The host's Xen: event channels of one domain in ordinary memory. For tests of this crate and of those above it,
//! also under loom, shuttle and Miri.
//!
//! A `shared_info`, a placed `vcpu_info` for each vcpu, and a table of ports; events are delivered bit by bit as
//! `event_2l.c` does, or as `event_fifo.c` (`hosted/fifo.rs`) once the guest has switched over. What a vcpu does about them is up to the test: nothing here enters an upcall.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::ptr::NonNull;
use std::sync::PoisonError;
#[cfg(not(shuttle))]
use std::sync::{Mutex, MutexGuard};

use percpu::{CpuId, Masked, Quiesced};
#[cfg(shuttle)]
use shuttle::sync::{Mutex, MutexGuard};
use xen_sys::abi::event_channel::EVTCHN_FIFO_PRIORITY_MIN;
use xen_sys::abi::xen::{SharedInfo, VIRQ_CONSOLE, VcpuInfo};
use xen_sys::errno::Errno;
use xen_sys::primitive::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use xen_sys::primitive::sync::atomic::fence;
use xen_sys::primitive::thread;

mod fifo;

use fifo::XenFifo;

use crate::abi::Abi;
use crate::hypervisor::Place;
use crate::passage::TaskInside;
use crate::two_level;
use crate::{
    AbiKind, Action, Answers, Asks, BindError, Binding, Binds, BoundTo, DeviceError, Events, Handlers, Hypervisor,
    PortNr, Ports, Status, Virq,
};

/// What a port is, in Xen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Channel {
    /// Not given out.
    Free,
    /// A virq of that vcpu.
    Virq(Virq, CpuId),
    /// An ipi to that vcpu.
    Ipi(CpuId),
    /// Interdomain, told to that vcpu.
    Device(CpuId),
}

impl Channel {
    /// The vcpu that is told.
    pub fn cpu(self) -> Option<CpuId> {
        match self {
            Channel::Free => None,
            Channel::Virq(_, cpu) | Channel::Ipi(cpu) | Channel::Device(cpu) => Some(cpu),
        }
    }
}

/// What Xen keeps of a domain.
pub struct Domain {
    /// The shared page.
    pub shared: SharedInfo,
    /// Placed, one for each vcpu.
    pub vcpus: Vec<VcpuInfo>,
    channels: Mutex<Vec<Channel>>,
    fifo: XenFifo,
}

/// A handle on the fake, as `Events` wants one.
#[derive(Clone)]
pub struct Fake(pub Arc<Domain>);

/// A virq that the domain has once.
pub const GLOBAL: Virq = Virq::known(VIRQ_CONSOLE);

/// CPU `n`.
///
/// # Panics
/// From `CpuId::MAX` on.
pub fn cpu(n: usize) -> CpuId {
    CpuId::new(n).expect("tests stay below CpuId::MAX")
}

/// Port `n`.
///
/// # Panics
/// For 0.
pub fn nr(n: u32) -> PortNr {
    PortNr::new(n).expect("tests use no port 0")
}

/// The first port number that `abi` does not reach; it is smaller under loom and Miri.
///
/// # Panics
/// Never.
pub fn capacity(abi: AbiKind) -> u32 {
    u32::try_from(Abi::new(abi).capacity()).expect("131072 at most")
}

/// Ports that the fake has: 1 up to this, xl's default, or what the ABI reaches.
pub const NR_PORTS: usize = if two_level::CAPACITY < 1024 { two_level::CAPACITY } else { 1024 };

/// The other end of every device port.
pub const PEER_PORT: u32 = 24;

impl Fake {
    /// A fresh domain: port 0 is never given out, everything is unmasked.
    pub fn new(nr_cpus: usize) -> Fake {
        Fake(Arc::new(Domain {
            shared: SharedInfo::new(),
            vcpus: (0..nr_cpus).map(|_| VcpuInfo::new()).collect(),
            channels: Mutex::new(vec![Channel::Free; NR_PORTS]),
            fifo: XenFifo::new(nr_cpus, NR_PORTS),
        }))
    }

    /// The `vcpu_info` of `cpu`.
    pub fn flags(&self, cpu: CpuId) -> &VcpuInfo {
        &self.0.vcpus[cpu.index()]
    }

    /// All ports.
    // std's lock and not loom's: nothing that loom watches happens while it is held. Where `allocate` runs beside others,
    // it does: shuttle's.
    pub fn channels(&self) -> MutexGuard<'_, Vec<Channel>> {
        self.0.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `port` is.
    pub fn channel(&self, port: u32) -> Channel {
        self.channels().get(port as usize).copied().unwrap_or(Channel::Free)
    }

    /// The lowest free port, for `channel`.
    ///
    /// # Errors
    /// As Xen: `EEXIST`, `ENOSPC`.
    pub fn allocate(&self, channel: Channel) -> Result<u32, Errno> {
        let mut channels = self.channels();
        let taken = match channel {
            Channel::Virq(virq, cpu) => channels.contains(&Channel::Virq(virq, cpu)),
            _ => false,
        };
        if taken {
            return Err(Errno::EEXIST);
        }
        // A closed port that still stands in a queue is not given out.
        let is_free = |port: &u32| channels[*port as usize] == Channel::Free && !self.0.fifo.is_linked(*port);
        let end = u32::try_from(channels.len()).expect("there are few ports");
        let free = (1..end).find(is_free).ok_or(Errno::ENOSPC)?;
        channels[free as usize] = channel;
        self.0.fifo.open(free);
        Ok(free)
    }

    /// The port of `channel`.
    pub fn find(&self, channel: Channel) -> Option<u32> {
        self.channels().iter().position(|c| *c == channel).and_then(|port| u32::try_from(port).ok())
    }

    /// An event on `port`, delivered to the vcpu that it is bound to. Returns whether Xen kicked that vcpu.
    ///
    /// As in Xen, who that is is looked up first, under no lock that `bind_vcpu` takes: it may be the one before.
    pub fn raise(&self, port: u32) -> bool {
        let Some(cpu) = self.channel(port).cpu() else { return false };
        if self.0.fifo.is_on() {
            return self.0.fifo.set_pending(cpu, port, self.flags(cpu));
        }
        let (word, bit) = (port as usize / 64, 1 << (port % 64));
        // x86's locked operations are full fences: that is what Xen relies on, and what the fences here stand for.
        let before = self.0.shared.evtchn_pending[word].fetch_or(bit, AcqRel);
        fence(SeqCst);
        if before & bit != 0 {
            return false;
        }
        if self.0.shared.evtchn_mask[word].load(Acquire) & bit != 0 {
            return false;
        }
        self.mark(cpu, word)
    }

    fn mark(&self, cpu: CpuId, word: usize) -> bool {
        let flags = self.flags(cpu);
        if flags.evtchn_pending_sel.fetch_or(1 << word, AcqRel) & (1 << word) != 0 {
            return false;
        }
        flags.evtchn_upcall_pending.fetch_or(1, AcqRel) == 0
    }

    /// What a restore does: no ports, all masked, nothing pending.
    pub fn restore(&self) {
        self.channels().fill(Channel::Free);
        self.0.fifo.reset(NR_PORTS);
        for word in 0..64 {
            self.0.shared.evtchn_pending[word].store(0, Relaxed);
            self.0.shared.evtchn_mask[word].store(!0, Relaxed);
        }
    }

    /// What registering a `vcpu_info` does to it.
    pub fn place(&self, cpu: CpuId) {
        let flags = self.flags(cpu);
        flags.evtchn_pending_sel.store(!0, Relaxed);
        flags.evtchn_upcall_pending.store(1, Relaxed);
    }

    /// Whether `port` is PENDING.
    pub fn is_pending(&self, port: u32) -> bool {
        if self.0.fifo.is_on() { self.0.fifo.is_pending(port) } else { self.is_pending_2l(port) }
    }

    fn is_pending_2l(&self, port: u32) -> bool {
        self.0.shared.evtchn_pending[port as usize / 64].load(Relaxed) & 1 << (port % 64) != 0
    }

    /// Whether `port` is MASKED.
    pub fn is_masked(&self, port: u32) -> bool {
        if self.0.fifo.is_on() {
            return self.0.fifo.is_masked(port);
        }
        self.0.shared.evtchn_mask[port as usize / 64].load(Relaxed) & 1 << (port % 64) != 0
    }

    /// A port's priority; only the FIFO ABI has any.
    pub fn priority(&self, port: u32) -> usize {
        self.0.fifo.priority(port)
    }

    /// As `EVTCHNOP_set_priority`.
    ///
    /// # Errors
    /// As Xen's.
    pub fn set_priority(&self, port: PortNr, priority: u32) -> Result<(), Errno> {
        if !self.0.fifo.is_on() {
            return Err(Errno::EOPNOTSUPP);
        }
        if priority > EVTCHN_FIFO_PRIORITY_MIN || self.channel(port.get()) == Channel::Free {
            return Err(Errno::EINVAL);
        }
        self.0.fifo.set_priority(port.get(), priority as usize);
        Ok(())
    }

    /// Sets BUSY, or clears it, as Xen does while it links; returns whether the port was masked just then.
    pub fn set_busy(&self, port: u32, busy: bool) -> bool {
        self.0.fifo.set_busy(port, busy)
    }

    /// Whether Xen would enter an upcall on `cpu` as soon as it is unmasked there.
    pub fn upcall_due(&self, cpu: CpuId) -> bool {
        self.flags(cpu).evtchn_upcall_pending.load(Relaxed) != 0
    }
}

impl Hypervisor for Fake {
    fn place_of<T>(&self, address: NonNull<T>) -> Place {
        let address = address.as_ptr().expose_provenance();
        let offset = u32::try_from(address % 4096).expect("below the size of a page");
        Place { mfn: (address - address % 4096) as u64, offset }
    }

    unsafe fn init_control(&self, cpu: CpuId, block: Place) -> Result<(), Errno> {
        if self.0.fifo.init_control(cpu, block)? {
            for port in (1..u32::try_from(NR_PORTS).expect("few ports")).filter(|port| self.is_pending_2l(*port)) {
                self.0.fifo.keep(port);
            }
        }
        Ok(())
    }

    unsafe fn expand_array(&self, page: Place) -> Result<(), Errno> {
        self.0.fifo.expand_array(page, |port| self.channel(port).cpu(), &self.0.vcpus)
    }

    fn send(&self, port: PortNr) -> Result<(), Errno> {
        match self.channel(port.get()) {
            Channel::Ipi(_) => {
                self.raise(port.get());
                Ok(())
            }
            // The peer's end is not modelled.
            Channel::Device(_) => Ok(()),
            Channel::Virq(..) | Channel::Free => Err(Errno::EINVAL),
        }
    }

    fn unmask(&self, port: PortNr) -> Result<(), Errno> {
        let port = port.get();
        let Some(cpu) = self.channel(port).cpu() else { return Err(Errno::EINVAL) };
        if self.0.fifo.is_on() {
            self.0.fifo.unmask(cpu, port, self.flags(cpu));
            return Ok(());
        }
        let (word, bit) = (port as usize / 64, 1 << (port % 64));
        let before = self.0.shared.evtchn_mask[word].fetch_and(!bit, AcqRel);
        fence(SeqCst);
        if before & bit != 0 && self.0.shared.evtchn_pending[word].load(Acquire) & bit != 0 {
            self.mark(cpu, word);
        }
        Ok(())
    }

    fn bind_vcpu(&self, port: PortNr, cpu: CpuId) -> Result<(), Errno> {
        match self.channels().get_mut(port.index()) {
            Some(Channel::Device(at)) => *at = cpu,
            Some(Channel::Virq(virq, at)) if !virq.is_per_vcpu() => *at = cpu,
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn close(&self, port: PortNr) -> Result<(), Errno> {
        match self.channels().get_mut(port.index()) {
            None | Some(Channel::Free) => return Err(Errno::EINVAL),
            Some(channel) => *channel = Channel::Free,
        }
        if self.0.fifo.is_on() {
            self.0.fifo.clear_pending(port.get());
            return Ok(());
        }
        let (word, bit) = (port.index() / 64, 1 << (port.index() % 64));
        self.0.shared.evtchn_pending[word].fetch_and(!bit, AcqRel);
        Ok(())
    }
}

impl Asks for Fake {
    fn status(&self, port: PortNr) -> Result<Status, Errno> {
        let channel = *self.channels().get(port.index()).ok_or(Errno::EINVAL)?;
        let bound_to = match channel {
            Channel::Free => BoundTo::Closed,
            Channel::Virq(virq, _) => BoundTo::Virq(virq.nr()),
            Channel::Ipi(_) => BoundTo::Ipi,
            Channel::Device(_) => BoundTo::Interdomain { dom: 0, port: PEER_PORT },
        };
        Ok(Status { vcpu: channel.cpu().map_or(0, CpuId::vcpu), bound_to })
    }
}

/// A batch that carries out each request at once.
pub struct Batch {
    xen: Fake,
    answers: Vec<Result<u32, Errno>>,
    room: usize,
}

impl Batch {
    /// A batch without end.
    pub fn new(xen: &Fake) -> Batch {
        Batch { xen: xen.clone(), answers: Vec::new(), room: usize::MAX }
    }

    /// A batch for so many requests.
    pub fn with_room(xen: &Fake, room: usize) -> Batch {
        Batch { room, ..Batch::new(xen) }
    }

    /// Replaces an answer.
    pub fn answer(&mut self, token: usize, answer: Result<u32, Errno>) {
        self.answers[token] = answer;
    }

    fn push(&mut self, call: impl FnOnce(&Fake) -> Result<u32, Errno>) -> Option<usize> {
        if self.answers.len() == self.room {
            return None;
        }
        self.answers.push(call(&self.xen));
        Some(self.answers.len() - 1)
    }
}

impl Binds for Batch {
    type Token = usize;
    type Call = usize;

    unsafe fn init_control(&mut self, cpu: CpuId, block: Place) -> Option<usize> {
        // SAFETY: the caller's.
        self.push(|xen| unsafe { xen.init_control(cpu, block) }.map(|()| 0))
    }

    fn bind_virq(&mut self, virq: Virq, cpu: CpuId) -> Option<usize> {
        self.push(|xen| xen.allocate(Channel::Virq(virq, cpu)))
    }

    fn bind_ipi(&mut self, cpu: CpuId) -> Option<usize> {
        self.push(|xen| xen.allocate(Channel::Ipi(cpu)))
    }

    fn set_priority(&mut self, port: PortNr, priority: u32) -> Option<usize> {
        self.push(|xen| xen.set_priority(port, priority).map(|()| 0))
    }

    fn send(&mut self, port: PortNr) -> Option<usize> {
        self.push(|xen| xen.send(port).map(|()| 0))
    }
}

impl Answers<Batch> for Batch {
    fn port(&self, token: usize) -> Result<u32, Errno> {
        self.answers[token]
    }

    fn done(&self, call: usize) -> Result<(), Errno> {
        self.answers[call].map(drop)
    }
}

/// A claim that there is one thread that matters.
pub fn quiesced() -> Quiesced {
    // SAFETY: the fake's memory never goes away while a test runs, and no thread of a test is in `Events` when it is
    // detached.
    unsafe { Quiesced::assume() }
}

/// A token as the upcall has it.
pub fn masked() -> Masked {
    percpu::hosted::masked()
}

/// Events of a fresh domain, attached. With the FIFO ABI nothing may be raised any more when they are dropped.
pub fn boot(xen: &Fake, abi: AbiKind, handlers: Handlers) -> Events<Fake> {
    let events = Events::new(xen.0.vcpus.len(), abi, handlers, xen.clone());
    attach(&events, xen, Ports::Gone);
    events
}

/// Attaches the fake's page.
pub fn attach(events: &Events<Fake>, xen: &Fake, ports: Ports) {
    // SAFETY: `events` holds a handle on the page's owner.
    unsafe { events.attach(&quiesced(), NonNull::from(&xen.0.shared), ports) }.expect("the fake knows both ABIs");
}

/// What `look` says of the action of port `nr`, if it is a device's.
pub fn with_device<T>(events: &Events<Fake>, nr: PortNr, look: impl FnOnce(&Action) -> T) -> Option<T> {
    let section = TaskInside::enter(|| &events.cpus.mine().passage);
    events.devices.lookup(nr, &section.inside).map(|found| look(found.action))
}

/// Unbinds, and waits for the end of it.
///
/// # Errors
/// As `unbind_device`.
pub fn unbind(events: &Events<Fake>, binding: Binding) -> Result<PortNr, DeviceError> {
    let mut unbinding = events.unbind_device(binding)?;
    while !unbinding.is_over() {
        thread::yield_now();
    }
    Ok(unbinding.port().nr)
}

/// Moves, and waits for the end of it.
///
/// # Errors
/// As `move_device`, and the move itself.
pub fn move_to(events: &Events<Fake>, binding: &mut Binding, cpu: CpuId) -> Result<(), DeviceError> {
    let mut moving = events.move_device(binding, cpu)?;
    while !moving.is_over()? {
        thread::yield_now();
    }
    Ok(())
}

/// Binds the intents of the CPU that the thread plays.
///
/// # Errors
/// As `plan` and `record`.
pub fn bring_up(events: &Events<Fake>, xen: &Fake) -> Result<(), BindError> {
    let mut batch = Batch::new(xen);
    let plan = events.plan(&masked(), &mut batch)?;
    events.record(&masked(), xen.flags(percpu::current()), plan, &batch)?;
    events.plan_priority(&masked(), &mut Batch::new(xen)).map(drop)
}

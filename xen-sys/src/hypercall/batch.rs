//! Several hypercalls in one trap, with their arguments kept beside them: [`Batch`].
//!
//! Made for resume, where one call per vcpu registers its areas, binds its virqs and ipis and
//! stops its periodic timer; and for the way into user mode. Contexts: any; no allocation, no lock.
//!
//! - BA1: addresses are taken only inside `issue_with`, which holds the batch by `&mut`; so it may move at any other time.
//! - BA2: from `issue_with` until the next push or clear `entries[i]` stands for `calls[i]`.
//! - BA3: whoever pushed call `i` has answered for its safety, for as long as the batch may be issued.
//! - BA4: the argument of a call that [`Binds`] is the structure of that bind.
//!
//! Turned down: raw `MulticallEntry` lists filled by the callers. The arguments live in memory, each caller would keep
//! them somewhere else, and a moved one would be found only on Xen. Also turned down: tokens with lifetimes that tie
//! them to their batch; a mixed-up index is a bug that the checks in [`Results`] turn into a panic.

use core::fmt;
use core::hint::black_box;

use arrayvec::ArrayVec;

use super::{address_of, multicall};
use crate::Errno;
use crate::abi::GuestHandle;
use crate::abi::arch::VcpuGuestContext;
use crate::abi::event_channel::{
    EVTCHNOP_bind_ipi, EVTCHNOP_bind_virq, EVTCHNOP_init_control, EVTCHNOP_send, EVTCHNOP_set_priority, EvtchnBindIpi,
    EvtchnBindVirq, EvtchnInitControl, EvtchnSend, EvtchnSetPriority,
};
use crate::abi::vcpu::{
    VCPUOP_down, VCPUOP_initialise, VCPUOP_register_runstate_memory_area, VCPUOP_register_vcpu_info,
    VCPUOP_register_vcpu_time_memory_area, VCPUOP_stop_periodic_timer, VCPUOP_up, VcpuRegisterRunstateMemoryArea,
    VcpuRegisterTimeMemoryArea, VcpuRegisterVcpuInfo, VcpuRunstateInfo,
};
use crate::abi::xen::{
    __HYPERVISOR_event_channel_op, __HYPERVISOR_mmuext_op, __HYPERVISOR_set_timer_op, __HYPERVISOR_stack_switch,
    __HYPERVISOR_vcpu_op, DOMID_SELF, MMUEXT_NEW_USER_BASEPTR, MMUEXT_TLB_FLUSH_LOCAL, MmuextOp, MulticallEntry,
    VcpuTimeInfo,
};

/// What a call points Xen to. In C's layout, so that each begins at the address that Xen is given.
#[derive(Clone, Copy)]
#[repr(C)]
union Argument {
    none: (),
    bind_virq: EvtchnBindVirq,
    bind_ipi: EvtchnBindIpi,
    send: EvtchnSend,
    set_priority: EvtchnSetPriority,
    init_control: EvtchnInitControl,
    vcpu_info: VcpuRegisterVcpuInfo,
    runstate: VcpuRegisterRunstateMemoryArea,
    time: VcpuRegisterTimeMemoryArea,
    mmuext: MmuextOp,
}

impl fmt::Debug for Argument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("_")
    }
}

/// Which call writes the port that it has bound into its argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Binds {
    Virq,
    Ipi,
}

/// No argument of the call is an address.
const NOWHERE: u8 = u8::MAX;

/// One call with its argument.
#[derive(Debug, Clone, Copy)]
struct Call {
    op: u64,
    /// But for the address of `argument`.
    args: [u64; 4],
    /// Which of `args` that is, or [`NOWHERE`].
    place: u8,
    binds: Option<Binds>,
    argument: Argument,
}

impl Call {
    /// One without an argument in memory.
    const fn plain(op: u64, args: [u64; 4]) -> Call {
        Call { op, args, place: NOWHERE, binds: None, argument: Argument { none: () } }
    }

    const fn event_channel_op(cmd: u32, argument: Argument) -> Call {
        Call { op: __HYPERVISOR_event_channel_op, args: [cmd as u64, 0, 0, 0], place: 1, binds: None, argument }
    }

    const fn bind_virq(op: EvtchnBindVirq) -> Call {
        let argument = Argument { bind_virq: op };
        Call { binds: Some(Binds::Virq), ..Call::event_channel_op(EVTCHNOP_bind_virq, argument) }
    }

    const fn bind_ipi(op: EvtchnBindIpi) -> Call {
        let argument = Argument { bind_ipi: op };
        Call { binds: Some(Binds::Ipi), ..Call::event_channel_op(EVTCHNOP_bind_ipi, argument) }
    }

    const fn vcpu_op_with(cmd: u32, vcpu: u32, argument: Argument) -> Call {
        Call { op: __HYPERVISOR_vcpu_op, args: [cmd as u64, vcpu as u64, 0, 0], place: 2, binds: None, argument }
    }

    /// A `vcpu_op` whose argument, if it has one, is not the batch's.
    const fn vcpu_op(cmd: u32, vcpu: u32, address: u64) -> Call {
        Call::plain(__HYPERVISOR_vcpu_op, [cmd as u64, vcpu as u64, address, 0])
    }

    const fn mmuext_op(op: MmuextOp) -> Call {
        let argument = Argument { mmuext: op };
        Call { op: __HYPERVISOR_mmuext_op, args: [0, 1, 0, DOMID_SELF as u64], place: 0, binds: None, argument }
    }

    /// The port that Xen has written, for the calls that return one.
    fn port(&self) -> Option<u32> {
        match self.binds? {
            // SAFETY: BA4: an `EvtchnBindVirq`, of which all was written when it was pushed; Xen has written a number over a number.
            Binds::Virq => Some(unsafe { self.argument.bind_virq.port }),
            // SAFETY: as above, an `EvtchnBindIpi`.
            Binds::Ipi => Some(unsafe { self.argument.bind_ipi.port }),
        }
    }

    /// The entry that stands for it.
    fn entry(&mut self) -> MulticallEntry {
        let [a1, a2, a3, a4] = self.args;
        let mut args = [a1, a2, a3, a4, 0, 0];
        if let Some(place) = args.get_mut(usize::from(self.place)) {
            *place = address_of(&mut self.argument);
        }
        MulticallEntry { op: self.op, result: 0, args }
    }
}

/// Names a pushed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallToken(usize);

/// Names a pushed call that returns a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortToken(usize);

/// A push that found no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchFull {
    /// How many calls the batch holds.
    pub capacity: usize,
}

impl fmt::Display for BatchFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch of {} hypercalls is full", self.capacity)
    }
}

impl core::error::Error for BatchFull {}

/// Up to `N` hypercalls for one trap; 136 bytes each, of which nothing is written before it is used: a store to each of them is code that is
/// met for the first time in a domain's first suspend (`docs/decisions/0008-cold-code.md`). For that also `push`, `issue` and `at` are called,
/// and not repeated in each caller.
#[derive(Debug)]
pub struct Batch<const N: usize> {
    calls: ArrayVec<Call, N>,
    entries: ArrayVec<MulticallEntry, N>,
}

impl<const N: usize> Default for Batch<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Batch<N> {
    /// An empty batch.
    pub const fn new() -> Self {
        Self { calls: ArrayVec::new_const(), entries: ArrayVec::new_const() }
    }

    #[inline(never)]
    fn push(&mut self, call: Call) -> Result<usize, BatchFull> {
        let index = self.calls.len();
        self.calls.try_push(call).map_err(|_| BatchFull { capacity: N })?;
        Ok(index)
    }

    /// Empties it, for others to be added. Tokens name nothing any more.
    pub fn clear(&mut self) {
        self.calls.clear();
        self.entries.clear();
    }

    /// Adds: bind a virq for a vcpu, which may be down; a global virq for vcpu 0. Xen answers `EEXIST`: bound already;
    /// `EINVAL`: no such virq, or a global one and `vcpu` is not 0; `ENOENT`: no such vcpu; `ENOSPC`.
    /// # Errors
    /// No place left.
    pub fn bind_virq(&mut self, virq: u32, vcpu: u32) -> Result<PortToken, BatchFull> {
        self.push(Call::bind_virq(EvtchnBindVirq { virq, vcpu, port: 0 })).map(PortToken)
    }

    /// Adds: FIFO ABI, the control block of `vcpu`. Xen answers as for
    /// [`evtchn::init_control`](super::evtchn::init_control).
    /// # Errors
    /// No place left.
    /// # Safety
    /// As for [`evtchn::init_control`](super::evtchn::init_control), whenever the batch is issued.
    pub unsafe fn init_control(&mut self, vcpu: u32, mfn: u64, offset: u32) -> Result<CallToken, BatchFull> {
        let op = EvtchnInitControl { control_gfn: mfn, offset, vcpu, ..EvtchnInitControl::default() };
        self.push(Call::event_channel_op(EVTCHNOP_init_control, Argument { init_control: op })).map(CallToken)
    }

    /// Adds: allocate a port that notifies `vcpu`, which may be down. Xen answers `ENOENT`: no such vcpu; `ENOSPC`.
    /// # Errors
    /// No place left.
    pub fn bind_ipi(&mut self, vcpu: u32) -> Result<PortToken, BatchFull> {
        self.push(Call::bind_ipi(EvtchnBindIpi { vcpu, port: 0 })).map(PortToken)
    }

    /// Adds [`evtchn::send`](super::evtchn::send).
    /// # Errors
    /// No place left.
    pub fn send(&mut self, port: u32) -> Result<CallToken, BatchFull> {
        self.push(Call::event_channel_op(EVTCHNOP_send, Argument { send: EvtchnSend { port } })).map(CallToken)
    }

    /// Adds [`evtchn::set_priority`](super::evtchn::set_priority).
    /// # Errors
    /// No place left.
    pub fn set_priority(&mut self, port: u32, priority: u32) -> Result<CallToken, BatchFull> {
        let argument = Argument { set_priority: EvtchnSetPriority { port, priority } };
        self.push(Call::event_channel_op(EVTCHNOP_set_priority, argument)).map(CallToken)
    }

    /// Adds [`vcpu::register_vcpu_info`](super::vcpu::register_vcpu_info).
    /// # Errors
    /// No place left.
    /// # Safety
    /// As for that function, from the first [`Batch::issue`] after this on.
    pub unsafe fn register_vcpu_info(&mut self, vcpu: u32, mfn: u64, offset: u32) -> Result<CallToken, BatchFull> {
        let op = VcpuRegisterVcpuInfo { mfn, offset, rsvd: 0 };
        self.push(Call::vcpu_op_with(VCPUOP_register_vcpu_info, vcpu, Argument { vcpu_info: op })).map(CallToken)
    }

    /// Adds [`vcpu::initialise`](super::vcpu::initialise).
    /// # Errors
    /// No place left.
    /// # Safety
    /// As for that function, from the first [`Batch::issue`] after this on; and until the last one `context` is there, unchanged.
    pub unsafe fn initialise(&mut self, vcpu: u32, context: *const VcpuGuestContext) -> Result<CallToken, BatchFull> {
        let address = context.expose_provenance() as u64;
        self.push(Call::vcpu_op(VCPUOP_initialise, vcpu, address)).map(CallToken)
    }

    /// Adds [`vcpu::up`](super::vcpu::up).
    /// # Errors
    /// No place left.
    pub fn up(&mut self, vcpu: u32) -> Result<CallToken, BatchFull> {
        self.push(Call::vcpu_op(VCPUOP_up, vcpu, 0)).map(CallToken)
    }

    /// Adds [`vcpu::down`](super::vcpu::down).
    /// # Errors
    /// No place left.
    pub fn down(&mut self, vcpu: u32) -> Result<CallToken, BatchFull> {
        self.push(Call::vcpu_op(VCPUOP_down, vcpu, 0)).map(CallToken)
    }

    /// Adds: keep a vcpu's runstate at `area`, written whenever the vcpu is scheduled. Null ends it. Xen answers
    /// `EFAULT`: the address is not the guest's; `ENOENT`.
    /// # Errors
    /// No place left.
    /// # Safety
    /// From the first [`Batch::issue`] after this on the area is mapped at that address in every root that the vcpu
    /// runs on, and reached only through shared references, until another area is registered, or a new domain is
    /// resumed.
    pub unsafe fn register_runstate(&mut self, vcpu: u32, area: *mut VcpuRunstateInfo) -> Result<CallToken, BatchFull> {
        let op = VcpuRegisterRunstateMemoryArea { addr: GuestHandle::new(area) };
        let argument = Argument { runstate: op };
        self.push(Call::vcpu_op_with(VCPUOP_register_runstate_memory_area, vcpu, argument)).map(CallToken)
    }

    /// Adds: keep a second copy of a vcpu's clock record at `area`. Null ends it. Xen answers as for
    /// [`Batch::register_runstate`].
    /// # Errors
    /// No place left.
    /// # Safety
    /// As for [`Batch::register_runstate`].
    pub unsafe fn register_time(&mut self, vcpu: u32, area: *mut VcpuTimeInfo) -> Result<CallToken, BatchFull> {
        let op = VcpuRegisterTimeMemoryArea { addr: GuestHandle::new(area) };
        let argument = Argument { time: op };
        self.push(Call::vcpu_op_with(VCPUOP_register_vcpu_time_memory_area, vcpu, argument)).map(CallToken)
    }

    /// Adds: stop a vcpu's periodic timer, which runs at 100 Hz on every vcpu of a new domain. Xen answers `ENOENT`: no
    /// such vcpu.
    /// # Errors
    /// No place left.
    pub fn stop_periodic_timer(&mut self, vcpu: u32) -> Result<CallToken, BatchFull> {
        self.push(Call::vcpu_op(VCPUOP_stop_periodic_timer, vcpu, 0)).map(CallToken)
    }

    /// Adds [`misc::set_timer_op`](super::misc::set_timer_op), for the vcpu that issues the batch.
    /// # Errors
    /// No place left.
    pub fn set_timer(&mut self, deadline_ns: u64) -> Result<CallToken, BatchFull> {
        self.push(Call::plain(__HYPERVISOR_set_timer_op, [deadline_ns, 0, 0, 0])).map(CallToken)
    }

    /// Adds: have Xen push the frames of entries from user mode below `sp`, rounded down to 16, on this vcpu.
    /// # Errors
    /// No place left.
    /// # Safety
    /// From the first [`Batch::issue`] after this on, whenever user mode runs on this vcpu, the memory below `sp` is a stack that
    /// nobody uses.
    pub unsafe fn stack_switch(&mut self, ss: u16, sp: u64) -> Result<CallToken, BatchFull> {
        self.push(Call::plain(__HYPERVISOR_stack_switch, [ss.into(), sp, 0, 0])).map(CallToken)
    }

    /// Adds: user mode runs on the L4 table `mfn` on this vcpu from now on, or, with 0, on none. Flushes no TLB. The kernel's root stays
    /// what it is. Xen answers `EINVAL`: the frame is none of ours, or no valid L4.
    /// # Errors
    /// No place left.
    pub fn user_root(&mut self, mfn: u64) -> Result<CallToken, BatchFull> {
        self.push(Call::mmuext_op(MmuextOp::on_mfn(MMUEXT_NEW_USER_BASEPTR, mfn))).map(CallToken)
    }

    /// Adds: flush the TLB of the processor that this vcpu runs on, global entries too.
    /// # Errors
    /// No place left.
    pub fn flush_tlb_here(&mut self) -> Result<CallToken, BatchFull> {
        self.push(Call::mmuext_op(MmuextOp::on_mfn(MMUEXT_TLB_FLUSH_LOCAL, 0))).map(CallToken)
    }

    /// Runs all calls, in the order in which they were added, each whatever became of the one before. One hypercall.
    ///
    /// The calls stay: issuing again repeats them.
    /// # Errors
    /// The multicall itself failed; which calls have run is then not known.
    #[inline(never)]
    pub fn issue(&mut self) -> Result<Results<'_, N>, Errno> {
        // SAFETY: each entry was made from its call (BA2), whose safety the one who pushed it has answered for (BA3),
        // and the arguments' addresses are of memory borrowed until Xen is done (BA1).
        self.issue_with(|entries| unsafe { multicall(entries) })
    }

    /// [`Batch::issue`] with something else in Xen's place; for tests of whoever fills a batch.
    /// # Errors
    /// Those of `xen`.
    pub fn issue_with(
        &mut self,
        xen: impl FnOnce(&mut [MulticallEntry]) -> Result<(), Errno>,
    ) -> Result<Results<'_, N>, Errno> {
        self.entries.clear();
        // Opaque, so that it stays a loop: after a restore all code is cold, and costs by its length.
        for call in black_box(&mut self.calls[..]) {
            self.entries.push(call.entry());
        }
        xen(&mut self.entries)?;
        Ok(Results { batch: self })
    }
}

/// What became of the calls of a batch.
#[derive(Debug)]
pub struct Results<'a, const N: usize> {
    batch: &'a Batch<N>,
}

impl<const N: usize> Results<'_, N> {
    /// The result of the call at `index`.
    #[inline(never)]
    fn at(&self, index: usize) -> Result<u64, Errno> {
        let entry = self.batch.entries.get(index).expect("token of another batch");
        Errno::check(entry.result.cast_signed())
    }

    /// What the call returned.
    /// # Errors
    /// The call's own.
    /// # Panics
    /// The token is not of this batch.
    pub fn get(&self, token: CallToken) -> Result<u64, Errno> {
        self.at(token.0)
    }

    /// The port that the call has bound.
    /// # Errors
    /// The call's own.
    /// # Panics
    /// The token is not of this batch.
    pub fn port(&self, token: PortToken) -> Result<u32, Errno> {
        self.at(token.0)?;
        Ok(self.batch.calls[token.0].port().expect("a port token names a bind of its batch"))
    }
}

const _: () = assert!(size_of::<Batch<2>>() - size_of::<Batch<1>>() == 136);

#[cfg(test)]
mod tests;

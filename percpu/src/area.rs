//! [`Area`]: the block behind a vcpu's gs base.
//!
//! It holds only what is wanted in one gs-relative instruction, or what Xen writes: the CPU's number and the
//! registered `vcpu_info` and runstate areas. Everything else that a CPU owns stands in
//! [`PerCpu`](crate::PerCpu) slots of the crate that knows what it means.
//!
//! - AR1: an area never moves and is never freed: Xen holds a reference to its page from the moment that the
//!   `vcpu_info` is registered until the domain ends.
//! - AR2: an area lies within one page, as `VCPUOP_register_vcpu_info` asks (`map_vcpu_info`): size and
//!   alignment are the same power of two.
#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
use core::mem::offset_of;
use core::mem::size_of;
use core::ptr;
use core::sync::atomic::compiler_fence;

use xen_sys::abi::vcpu::VcpuRunstateInfo;
use xen_sys::abi::xen::VcpuInfo;
use xen_sys::hypercall::poll::PollArgument;
use xen_sys::primitive::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, Ordering};

use crate::CpuId;

/// What the gs base of a vcpu points to. 256 bytes, aligned to as many.
#[repr(C, align(256))]
pub struct Area {
    /// Written by Xen and by this CPU. First, so that it fills one cache line. Suspend: *cleared*; vCPU 0
    /// places its own again, and everybody's who is down.
    pub vcpu_info: VcpuInfo,
    /// This area's own address, so that it can be had by one load through gs. Written once, by [`Area::link`].
    this: AtomicPtr<Area>,
    cpu: CpuId,
    /// Where upcalls go: one of the constants below. One word for all of it, so that the upcall's entry looks once. Written by this
    /// CPU. Suspend: *kept*.
    upcalls: AtomicU8,
    /// What this CPU waits for where an upcall is sent back unhandled: then the wait is over before it begins. Written by this CPU.
    /// Suspend: *kept*.
    pub doze: PollArgument,
    /// Where this CPU was when its last upcall came. Written by the upcall's entry; read by anybody, for people. Suspend:
    /// *kept*.
    pub upcall_rip: AtomicU64,
    /// Written by Xen, read by anybody (statistics and the watchdog). Suspend: *cleared*, registered again.
    pub runstate: VcpuRunstateInfo,
}

const _: () = assert!(size_of::<Area>() == 256 && align_of::<Area>() == 256, "AR2");

/// Where the gs-relative instructions find what they want.
#[cfg(target_os = "none")]
impl Area {
    /// Offset of the area's own address from the gs base.
    pub(crate) const THIS: usize = offset_of!(Area, this);
    /// Offset of the CPU's number from the gs base.
    pub(crate) const CPU: usize = offset_of!(Area, cpu);
    /// Offset of the upcall mask from the gs base.
    pub(crate) const UPCALL_MASK: usize = offset_of!(Area, vcpu_info) + offset_of!(VcpuInfo, evtchn_upcall_mask);
    /// Offset of the upcall's pending flag from the gs base.
    pub(crate) const UPCALL_PENDING: usize = offset_of!(Area, vcpu_info) + offset_of!(VcpuInfo, evtchn_upcall_pending);
    /// Offset of a byte that is 0 where upcalls are just handled, that is where neither [`Area::is_dozing`] nor [`Area::is_in_user`].
    pub const UPCALLS: usize = offset_of!(Area, upcalls);
}

/// Upcalls are handled.
const HANDLED: u8 = 0;
/// Upcalls are sent back: see [`Area::set_dozing`].
const SENT_BACK: u8 = 1;
/// Upcalls come from user mode: see [`Area::set_in_user`].
const FROM_USER: u8 = 2;

impl Area {
    /// The area of `cpu`, to be put where it will stay and then [linked](Area::link).
    pub const fn new(cpu: CpuId) -> Area {
        Area {
            vcpu_info: VcpuInfo::new(),
            this: AtomicPtr::new(ptr::null_mut()),
            cpu,
            upcalls: AtomicU8::new(HANDLED),
            doze: PollArgument::new(),
            upcall_rip: AtomicU64::new(0),
            runstate: VcpuRunstateInfo::new(),
        }
    }

    /// Finishes an area that has got its place for life; its address is what the gs base must become. Upcalls start
    /// masked.
    pub fn link(&'static self) -> u64 {
        // ORDERING: Relaxed, as below.
        self.vcpu_info.evtchn_upcall_mask.store(1, Ordering::Relaxed);
        let this = ptr::from_ref(self).cast_mut();
        // ORDERING: Relaxed, read only by the vcpu that starts with this gs base, which is started later.
        self.this.store(this, Ordering::Relaxed);
        this.addr() as u64
    }

    /// Says whether upcalls are to be sent back unhandled: so while this CPU dozes in a rendezvous, with upcalls unmasked for Xen to wake
    /// it. The upcall's entry looks here first.
    pub fn set_dozing(&self, dozing: bool) {
        // ORDERING: Relaxed, read by upcalls on this CPU only. The fences keep the compiler from moving it over what the caller does
        //   to its upcall mask.
        compiler_fence(Ordering::SeqCst);
        self.upcalls.store(if dozing { SENT_BACK } else { HANDLED }, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
    }

    /// Whether upcalls are to be sent back.
    pub fn is_dozing(&self) -> bool {
        // ORDERING: Relaxed, written by this CPU only.
        self.upcalls.load(Ordering::Relaxed) == SENT_BACK
    }

    /// Says whether the next upcall comes from user mode: from before it is entered, with upcalls masked, until whatever comes first from
    /// there has been seen. The upcall's entry learns it from here and not from its frame, as it looks here anyway.
    pub fn set_in_user(&self, in_user: bool) {
        // ORDERING: Relaxed, read by upcalls on this CPU only, which are masked here.
        self.upcalls.store(if in_user { FROM_USER } else { HANDLED }, Ordering::Relaxed);
    }

    /// Whether the next upcall comes from user mode.
    pub fn is_in_user(&self) -> bool {
        // ORDERING: Relaxed, written by this CPU only.
        self.upcalls.load(Ordering::Relaxed) == FROM_USER
    }

    /// The CPU whose area this is.
    pub fn cpu(&self) -> CpuId {
        self.cpu
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_masked_and_knows_itself() {
        static AREA: Area = Area::new(CpuId::BOOT);
        assert_eq!(AREA.link(), ptr::from_ref(&AREA).addr() as u64);
        assert_eq!(AREA.vcpu_info.evtchn_upcall_mask.load(Ordering::Relaxed), 1);
        assert_eq!(AREA.cpu(), CpuId::BOOT);
        assert!(!AREA.is_dozing());
        AREA.set_dozing(true);
        assert!(AREA.is_dozing() && !AREA.is_in_user());
        AREA.set_dozing(false);
        assert!(!AREA.is_dozing());
        AREA.set_in_user(true);
        assert!(AREA.is_in_user() && !AREA.is_dozing());
        AREA.set_in_user(false);
        assert!(!AREA.is_in_user());
    }
}

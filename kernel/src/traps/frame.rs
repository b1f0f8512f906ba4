//! [`Frame`]: what a stub leaves on the stack for Rust, and finds there on the way back.
//!
//! ```text
//!   offset   slot          pushed by
//!   0..120   r15 … rax     the stub (rbp among them)
//!   120      vector        the stub
//!   128      error code    Xen, or 0 by the stub; the way out makes it the `flags` of HYPERVISOR_iret
//!   136      rip           Xen
//!   144      cs            Xen: bits 0-15 cs, 32-39 the upcall mask before entry
//!   152      rflags        Xen: IF is what the mask was not
//!   160      rsp           Xen
//!   168      ss            Xen
//! ```
//!
//! Xen rounds the stack down to 16 before it pushes (`create_bounce_frame`), so a whole frame keeps calls aligned.

use core::fmt;
use core::mem::{offset_of, size_of};

use xen_sys::abi::arch::{FLAT_USER_CS, FLAT_USER_SS};

/// Interrupted state. 176 bytes. Also what user mode is entered with.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub(crate) struct Frame {
    pub(crate) r15: u64,
    pub(crate) r14: u64,
    pub(crate) r13: u64,
    pub(crate) r12: u64,
    pub(crate) r11: u64,
    pub(crate) r10: u64,
    pub(crate) r9: u64,
    pub(crate) r8: u64,
    pub(crate) rdi: u64,
    pub(crate) rsi: u64,
    pub(crate) rbp: u64,
    pub(crate) rbx: u64,
    pub(crate) rdx: u64,
    pub(crate) rcx: u64,
    pub(crate) rax: u64,
    pub(crate) vector: u64,
    pub(crate) error_code: u64,
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
    pub(crate) ss: u64,
}

const _: () = assert!(size_of::<Frame>() == 176 && size_of::<Frame>().is_multiple_of(16));
const _: () = assert!(offset_of!(Frame, vector) == 15 * 8 && offset_of!(Frame, error_code) == 16 * 8);
const _: () = assert!(offset_of!(Frame, rip) == 17 * 8 && offset_of!(Frame, ss) == 21 * 8);

/// `rflags.IF`, which a PV guest finds as the opposite of its upcall mask.
const IF: u64 = 1 << 9;

/// Bits of `cs` that tell user mode from the kernel's, in what Xen pushes.
const RPL: u64 = 3;

impl Frame {
    /// Whether it was user mode that was interrupted.
    pub(crate) fn is_from_user(&self) -> bool {
        self.cs & RPL == RPL
    }

    /// Makes the way out one into user mode, upcalls unmasked; whatever flags user mode can set for itself stay.
    pub(crate) fn enter_user(&mut self) {
        (self.cs, self.ss) = (FLAT_USER_CS.into(), FLAT_USER_SS.into());
        self.rflags |= IF;
    }

    /// Makes the way out leave upcalls masked.
    pub(super) fn return_masked(&mut self) {
        self.rflags &= !IF;
    }
}

/// What the event callback's stub leaves on the stack: what a function may change, then as `HYPERVISOR_iret` wants it.
///
/// ```text
///   offset   slot               pushed by
///   0..48    r10 … rsi, rdx     the stub
///   48       rax, r11           the stub
///   64       rcx                Xen
///   72       flags of iret: 0   the stub; before, r11, by Xen
///   80       rip … ss           Xen, as in a `Frame`
/// ```
#[repr(C)]
pub(crate) struct UpcallFrame {
    changeable: [u64; 6],
    rax: u64,
    r11: u64,
    rcx: u64,
    flags: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

const _: () = assert!(offset_of!(UpcallFrame, rax) == 6 * 8 && offset_of!(UpcallFrame, flags) == 9 * 8);
const _: () = assert!(offset_of!(UpcallFrame, rflags) == 12 * 8 && size_of::<UpcallFrame>() == 15 * 8);

impl UpcallFrame {
    /// Bytes below it that keep the call aligned: Xen rounds down to 16 before it pushes.
    pub(super) const TO_ALIGN: usize = size_of::<UpcallFrame>().next_multiple_of(16) - size_of::<UpcallFrame>();

    /// Where r11 is from what Xen pushed last.
    pub(super) const R11_OF_XEN: usize = offset_of!(UpcallFrame, flags) - offset_of!(UpcallFrame, rcx);

    /// Where the flags are from the stub's r11.
    pub(super) const FLAGS_ABOVE_R11: usize = offset_of!(UpcallFrame, flags) - offset_of!(UpcallFrame, r11);

    /// Where the interrupted instruction is.
    pub(super) const RIP: usize = offset_of!(UpcallFrame, rip);
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rip={:#x} rsp={:#x} rflags={:#x} rax={:#x} rbx={:#x} rcx={:#x} rdx={:#x} rsi={:#x} rdi={:#x} rbp={:#x} \
             r8={:#x} r9={:#x} r10={:#x} r11={:#x} r12={:#x} r13={:#x} r14={:#x} r15={:#x}",
            self.rip,
            self.rsp,
            self.rflags,
            self.rax,
            self.rbx,
            self.rcx,
            self.rdx,
            self.rsi,
            self.rdi,
            self.rbp,
            self.r8,
            self.r9,
            self.r10,
            self.r11,
            self.r12,
            self.r13,
            self.r14,
            self.r15
        )
    }
}

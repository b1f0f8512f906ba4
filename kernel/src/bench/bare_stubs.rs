//! The event callbacks of `bare-ipi`, one for each ABI: what an upcall for one known port cannot do without.
//!
//! Who enters: Xen, as it enters the kernel's own callback (`traps/stubs.rs`), on a vcpu that has registered one of these for the
//! time of the bench. Live: everything but rcx and r11, which Xen has pushed; only rax is used besides. They leave through
//! `HYPERVISOR_iret`, as the kernel does.
//!
//! | step | 2-level | FIFO |
//! |---|---|---|
//! | no upcall is pending | a store | a store |
//! | nor any word, or this queue | a store | a locked `and` |
//! | the port's event is taken | a locked `and` | a locked `and` |
//! | the waiter is told | a store | a store |
//!
//! With the 2-level ABI the store takes other ports' selector bits too, and in both `upcall_pending` may be another port's: so who
//! puts the kernel's callback back makes all words pending. With the FIFO ABI the port must be alone in its queue.

use core::arch::global_asm;
use core::mem::offset_of;

use evtchn::AbiKind;
use percpu::Area;
use xen_sys::abi::xen::{__HYPERVISOR_iret, VcpuInfo};
use xen_sys::primitive::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};

use super::others::Apart;

/// What the stubs work on.
#[repr(C, align(128))]
pub(super) struct Places {
    /// The word that has the port's event: 64 bits of `shared_info`, or the port's event word of 32.
    pub(super) event: AtomicPtr<()>,
    /// What is kept of it.
    pub(super) event_keeps: AtomicU64,
    /// FIFO only: the ready bits.
    pub(super) ready: AtomicPtr<AtomicU32>,
    /// What is kept of them.
    pub(super) ready_keeps: AtomicU32,
}

/// Written while no vcpu has a stub registered. Both pointers are valid whenever one has.
pub(super) static PLACES: Places = Places {
    event: AtomicPtr::new(core::ptr::null_mut()),
    event_keeps: AtomicU64::new(0),
    ready: AtomicPtr::new(core::ptr::null_mut()),
    ready_keeps: AtomicU32::new(0),
};

/// 1 once a stub has run.
pub(super) static SEEN: Apart<AtomicU32> = Apart(AtomicU32::new(0));

unsafe extern "C" {
    fn stasis_bare_upcall_2l();
    fn stasis_bare_upcall_fifo();
}

/// Address of the stub for `abi`.
pub(super) fn entry(abi: AbiKind) -> u64 {
    let stub = match abi {
        AbiKind::TwoLevel => stasis_bare_upcall_2l as *const (),
        AbiKind::Fifo => stasis_bare_upcall_fifo as *const (),
    };
    stub.addr() as u64
}

global_asm!(
    // HYPERVISOR_iret wants rax, r11, rcx, flags, then what Xen pushed; Xen pushed rcx and r11 on top of that.
    ".macro bare_upcall_begin",
    "    pop rcx",
    "    pop r11",
    "    push 0",
    "    push rcx",
    "    push r11",
    "    push rax",
    "    mov byte ptr gs:[{upcall_pending}], 0",
    ".endm",
    ".macro bare_upcall_end",
    "    mov dword ptr [rip + {seen}], 1",
    "    mov eax, {iret}",
    "    syscall",
    "    ud2",
    ".endm",
    "",
    ".pushsection .text.stasis_bare, \"ax\", @progbits",
    ".globl stasis_bare_upcall_2l",
    ".type stasis_bare_upcall_2l, @function",
    "stasis_bare_upcall_2l:",
    "    bare_upcall_begin",
    "    mov qword ptr gs:[{selector}], 0",
    "    mov rcx, [rip + {places} + {event}]",
    "    mov rax, [rip + {places} + {event_keeps}]",
    "    lock and qword ptr [rcx], rax",
    "    bare_upcall_end",
    ".size stasis_bare_upcall_2l, . - stasis_bare_upcall_2l",
    "",
    ".globl stasis_bare_upcall_fifo",
    ".type stasis_bare_upcall_fifo, @function",
    "stasis_bare_upcall_fifo:",
    "    bare_upcall_begin",
    "    mov rcx, [rip + {places} + {ready}]",
    "    mov eax, [rip + {places} + {ready_keeps}]",
    "    lock and dword ptr [rcx], eax",
    "    mov rcx, [rip + {places} + {event}]",
    "    mov eax, [rip + {places} + {event_keeps}]",
    "    lock and dword ptr [rcx], eax",
    "    bare_upcall_end",
    ".size stasis_bare_upcall_fifo, . - stasis_bare_upcall_fifo",
    ".popsection",
    ".purgem bare_upcall_begin",
    ".purgem bare_upcall_end",
    upcall_pending = const offset_of!(Area, vcpu_info) + offset_of!(VcpuInfo, evtchn_upcall_pending),
    selector = const offset_of!(Area, vcpu_info) + offset_of!(VcpuInfo, evtchn_pending_sel),
    places = sym PLACES,
    event = const offset_of!(Places, event),
    event_keeps = const offset_of!(Places, event_keeps),
    ready = const offset_of!(Places, ready),
    ready_keeps = const offset_of!(Places, ready_keeps),
    seen = sym SEEN,
    iret = const __HYPERVISOR_iret,
);

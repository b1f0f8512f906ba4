//! The entry stubs: one for the event callback, one for each exception, one for the failsafe callback, one for `syscall`.
//!
//! Who enters: Xen, in kernel mode on the current stack below its pointer (there is no red zone and no interrupt
//! stack), in user mode on the stack that `user::stubs` has named, with rcx and r11 on top of the frame because Xen usually gets here by SYSRET. Upcalls are masked by Xen: always for
//! events, for exceptions because `table` below says so, for `syscall` because it is registered so. DF is as it was, hence `cld`.
//!
//! How they leave: through HYPERVISOR_iret, which restores the upcall mask together with rip, so no critical
//! section on the way out has to be fixed up. Costs one hypercall a return. Or not at all: when `entered` says so, a frame from
//! user mode is left to who entered user mode (`stasis_user_left`).

use core::arch::global_asm;
use core::mem::offset_of;

use xen_sys::abi::arch::{FLAT_KERNEL_CS, TrapInfo};
use xen_sys::abi::xen::__HYPERVISOR_iret;

use percpu::Area;

use super::frame::{Frame, UpcallFrame};

/// The vector in a [`Frame`] that came from the failsafe callback.
pub(crate) const FAILSAFE: u64 = 0x101;
/// The vector in a [`Frame`] that came from the event callback, which is so from user mode and on a CPU that dozes.
pub(crate) const UPCALL: u64 = 0x102;
/// The vector in a [`Frame`] that came from `syscall` in user mode.
pub(crate) const SYSCALL: u64 = 0x103;

/// Mask upcalls on entry (`xen/include/public/arch-x86/xen.h`, `TI_SET_IF`).
const TRAP_MASKS_UPCALLS: u8 = 4;

/// Exceptions by vector: whether the processor pushes an error code.
const EXCEPTIONS: [(u8, Stub); 18] = [
    (0, stasis_exception_0),
    (1, stasis_exception_1),
    (3, stasis_exception_3),
    (4, stasis_exception_4),
    (5, stasis_exception_5),
    (6, stasis_exception_6),
    (7, stasis_exception_7),
    (8, stasis_exception_8),
    (10, stasis_exception_10),
    (11, stasis_exception_11),
    (12, stasis_exception_12),
    (13, stasis_exception_13),
    (14, stasis_exception_14),
    (16, stasis_exception_16),
    (17, stasis_exception_17),
    (18, stasis_exception_18),
    (19, stasis_exception_19),
    (20, stasis_exception_20),
];

type Stub = unsafe extern "C" fn();

unsafe extern "C" {
    fn stasis_upcall();
    fn stasis_failsafe();
    fn stasis_syscall();
    fn stasis_exception_0();
    fn stasis_exception_1();
    fn stasis_exception_3();
    fn stasis_exception_4();
    fn stasis_exception_5();
    fn stasis_exception_6();
    fn stasis_exception_7();
    fn stasis_exception_8();
    fn stasis_exception_10();
    fn stasis_exception_11();
    fn stasis_exception_12();
    fn stasis_exception_13();
    fn stasis_exception_14();
    fn stasis_exception_16();
    fn stasis_exception_17();
    fn stasis_exception_18();
    fn stasis_exception_19();
    fn stasis_exception_20();
}

/// Address of the event callback.
pub(crate) fn upcall() -> u64 {
    (stasis_upcall as *const ()).addr() as u64
}

/// Address of the failsafe callback.
pub(crate) fn failsafe() -> u64 {
    (stasis_failsafe as *const ()).addr() as u64
}

/// Address of the callback of `syscall` in user mode.
pub(crate) fn syscall() -> u64 {
    (stasis_syscall as *const ()).addr() as u64
}

/// The trap table. Xen takes entries up to the first with address 0, so the last one here is that.
pub(crate) fn table() -> [TrapInfo; EXCEPTIONS.len() + 1] {
    let mut table = [TrapInfo::default(); EXCEPTIONS.len() + 1];
    for (entry, (vector, stub)) in table.iter_mut().zip(EXCEPTIONS) {
        *entry = TrapInfo {
            vector,
            flags: TRAP_MASKS_UPCALLS,
            cs: FLAT_KERNEL_CS,
            address: (stub as *const ()).addr() as u64,
        };
    }
    table
}

global_asm!(
    ".macro exception_stub vector:req, has_error_code:req",
    ".globl stasis_exception_\\vector",
    ".type stasis_exception_\\vector, @function",
    "stasis_exception_\\vector:",
    "    pop rcx",
    "    pop r11",
    "    .if \\has_error_code == 0",
    "    push 0",
    "    .endif",
    "    push \\vector",
    "    jmp stasis_trap",
    ".size stasis_exception_\\vector, . - stasis_exception_\\vector",
    ".endm",
    "",
    ".pushsection .text.stasis_traps, \"ax\", @progbits",
    "exception_stub 0, 0",
    "exception_stub 1, 0",
    "exception_stub 3, 0",
    "exception_stub 4, 0",
    "exception_stub 5, 0",
    "exception_stub 6, 0",
    "exception_stub 7, 0",
    "exception_stub 8, 1",
    "exception_stub 10, 1",
    "exception_stub 11, 1",
    "exception_stub 12, 1",
    "exception_stub 13, 1",
    "exception_stub 14, 1",
    "exception_stub 16, 0",
    "exception_stub 17, 1",
    "exception_stub 18, 0",
    "exception_stub 19, 0",
    "exception_stub 20, 0",
    ".purgem exception_stub",
    "",
    // Frame: rcx, r11, then ds, es, fs, gs (all 0 in this kernel), then as for an event.
    ".globl stasis_failsafe",
    ".type stasis_failsafe, @function",
    "stasis_failsafe:",
    "    pop rcx",
    "    pop r11",
    "    add rsp, 32",
    "    push 0",
    "    push {failsafe}",
    "    jmp stasis_trap",
    ".size stasis_failsafe, . - stasis_failsafe",
    "",
    // From user mode alone: `syscall` in kernel mode is a hypercall.
    ".globl stasis_syscall",
    ".type stasis_syscall, @function",
    "stasis_syscall:",
    "    pop rcx",
    "    pop r11",
    "    push 0",
    "    push {from_syscall}",
    "    jmp stasis_trap",
    ".size stasis_syscall, . - stasis_syscall",
    "",
    // Upcalls that the event callback passes on: from user mode, whose registers may have to be kept, all of them; and those that strike
    // a CPU that dozes, which are rare.
    ".type stasis_upcall_aside, @function",
    "stasis_upcall_aside:",
    "    pop rcx",
    "    pop r11",
    "    push 0",
    "    push {from_upcall}",
    "    jmp stasis_trap",
    ".size stasis_upcall_aside, . - stasis_upcall_aside",
    "",
    // The event callback has a way of its own: it saves what a Rust function may change and no more, and in the order in which
    // HYPERVISOR_iret wants the top of it. Frame: `UpcallFrame`. Of the two that Xen pushed, rcx is where it is wanted; r11 is
    // where the flags belong.
    ".globl stasis_upcall",
    ".type stasis_upcall, @function",
    "stasis_upcall:",
    "    cmp byte ptr gs:[{upcalls_of_area}], 0",
    "    jne stasis_upcall_aside",
    "    push qword ptr [rsp + {r11_of_xen}]",
    "    mov qword ptr [rsp + {flags_above_r11}], 0",
    "    push rax",
    "    push rdx",
    "    push rsi",
    "    push rdi",
    "    push r8",
    "    push r9",
    "    push r10",
    "    cld",
    "    lea rdi, [rsp + {rip_of_upcall}]",
    "    sub rsp, {align_upcall}",
    "    call {upcall}",
    "    add rsp, {align_upcall}",
    "    pop r10",
    "    pop r9",
    "    pop r8",
    "    pop rdi",
    "    pop rsi",
    "    pop rdx",
    "    mov eax, {iret}",
    "    syscall",
    "    ud2",
    ".size stasis_upcall, . - stasis_upcall",
    "",
    // The stack is now as `Frame` has it from `vector` up. `stasis_return` is where user mode is entered, too, with a whole frame.
    ".globl stasis_return",
    ".type stasis_trap, @function",
    "stasis_trap:",
    "    cld",
    "    push rax",
    "    push rcx",
    "    push rdx",
    "    push rbx",
    "    push rbp",
    "    push rsi",
    "    push rdi",
    "    push r8",
    "    push r9",
    "    push r10",
    "    push r11",
    "    push r12",
    "    push r13",
    "    push r14",
    "    push r15",
    "    mov rdi, rsp",
    "    call {entered}",
    "    test al, al",
    "    jnz stasis_user_left",
    "stasis_return:",
    "    pop r15",
    "    pop r14",
    "    pop r13",
    "    pop r12",
    "    pop r11",
    "    pop r10",
    "    pop r9",
    "    pop r8",
    "    pop rdi",
    "    pop rsi",
    "    pop rbp",
    "    pop rbx",
    "    pop rdx",
    "    pop rcx",
    "    pop rax",
    // HYPERVISOR_iret wants rax, r11, rcx, flags, then what Xen pushed. The error code's slot becomes the flags.
    "    add rsp, {error_code_after_vector}",
    "    mov qword ptr [rsp], 0",
    "    push rcx",
    "    push r11",
    "    push rax",
    "    mov eax, {iret}",
    "    syscall",
    "    ud2",
    ".size stasis_trap, . - stasis_trap",
    ".popsection",
    r11_of_xen = const UpcallFrame::R11_OF_XEN,
    flags_above_r11 = const UpcallFrame::FLAGS_ABOVE_R11,
    rip_of_upcall = const UpcallFrame::RIP,
    upcall = sym super::upcall,
    align_upcall = const UpcallFrame::TO_ALIGN,
    upcalls_of_area = const Area::UPCALLS,
    failsafe = const FAILSAFE,
    from_upcall = const UPCALL,
    from_syscall = const SYSCALL,
    entered = sym super::entered,
    error_code_after_vector = const offset_of!(Frame, error_code) - offset_of!(Frame, vector),
    iret = const __HYPERVISOR_iret,
);

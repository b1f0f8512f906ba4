//! The way into user mode, and out of it.
//!
//! ```text
//!   address           what                                               by
//!   top               rbp, rbx, r12 … r15, and where the registers are   `stasis_user_run`
//!   top - 176 … top   a `Frame`: user mode's registers                   `stasis_user_run`, for the way in; then Xen and the stub that
//!                                                                        is entered from user mode, in the same place
//!   below             the stack of what handles it                       `traps::entered`
//! ```
//!
//! `top` is a multiple of 16 and what Xen is told to push from. So an upcall with nothing to do goes back as it came, by one
//! HYPERVISOR_iret, and whoever wants user mode left finds its registers in a place that `stasis_user_run` knows.
//!
//! Context: upcalls masked, until the iret; then user mode, in which this CPU's kernel stack above `top` waits.

use core::arch::global_asm;
use core::mem::size_of;

use crate::traps::Frame;

unsafe extern "C" {
    /// Enters user mode with `registers`, which it replaces with those that user mode is left with; `vector` says how. 0, or what
    /// [`load`](super::load) has returned: then user mode has not been entered, and nothing replaced.
    ///
    /// # Safety
    /// - upcalls are masked, and are again when it returns;
    /// - `registers` go to user mode ([`Frame::enter_user`]), `rip` is an address of the lower half;
    /// - this is the CPU's own executor: nobody above waits for anything that is done in an upcall with upcalls masked.
    pub(super) fn stasis_user_run(registers: *mut Frame, root_mfn: u64, flush: bool) -> i32;
}

const _: () = assert!(size_of::<Frame>().is_multiple_of(16), "top is a multiple of 16");

global_asm!(
    ".pushsection .text.stasis_user, \"ax\", @progbits",
    // rdi, rsi, edx: the arguments. Seven words are pushed, so that rsp is a multiple of 16 then.
    ".globl stasis_user_run",
    ".type stasis_user_run, @function",
    "stasis_user_run:",
    "    push rbp",
    "    push rbx",
    "    push r12",
    "    push r13",
    "    push r14",
    "    push r15",
    "    push rdi",
    "    sub rsp, {frame}",
    "    mov rax, rsi",
    "    mov rsi, rdi",
    "    mov rdi, rsp",
    "    mov ecx, {frame} / 8",
    "    rep movsq",
    "    lea rdi, [rsp + {frame}]",
    "    mov rsi, rax",
    "    call {load}",
    "    test eax, eax",
    "    jz stasis_return",
    "    add rsp, {frame} + 8",
    "    jmp 2f",
    "",
    // From `stasis_trap`, rsp at the frame, when `entered` wants user mode left.
    ".globl stasis_user_left",
    "stasis_user_left:",
    "    mov rsi, rsp",
    "    mov rdi, [rsp + {frame}]",
    "    mov ecx, {frame} / 8",
    "    rep movsq",
    "    add rsp, {frame} + 8",
    "    xor eax, eax",
    "2:",
    "    pop r15",
    "    pop r14",
    "    pop r13",
    "    pop r12",
    "    pop rbx",
    "    pop rbp",
    "    ret",
    ".size stasis_user_run, . - stasis_user_run",
    ".popsection",
    frame = const size_of::<Frame>(),
    load = sym super::load,
);

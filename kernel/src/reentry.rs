//! [`call`]: a function that a vcpu which is lost in it calls again, in another life of the domain, as if it had not begun.
//!
//! What is lost is a vcpu's registers; its stack is memory, and stays. So before the function is called the callee-saved registers
//! and the function itself are put on the stack ([`Saved`]), and the stack's pointer is given away. A vcpu that is started at [`entry`] with
//! that pointer makes the call again, and returns from it to whoever called [`call`], once in all.
//!
//! - RE1: the pointer that [`call`] stores is good until that call returns. What the vcpu had below it is gone when it is used, without
//!   having been dropped.
//!
//! Suspend: this is what it is for. Turned down: to return twice, as `setjmp` does, which the compiler does not know of.

use core::arch::global_asm;
use core::cell::Cell;
use core::ffi::c_void;
use core::mem::{offset_of, size_of};

use xen_sys::primitive::sync::atomic::AtomicU64;

/// What stands on the stack from the pointer up.
#[repr(C)]
struct Saved {
    /// Makes the stack a multiple of 16 at the call.
    padding: u64,
    function: u64,
    argument: u64,
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    rbx: u64,
    rbp: u64,
    returns_to: u64,
}

const _: () = assert!(size_of::<Saved>().is_multiple_of(16), "the caller's stack was aligned before its call");

unsafe extern "C" {
    fn stasis_reentry_call(argument: *const c_void, f: extern "C" fn(*const c_void), stack: *mut u64);
    fn stasis_reentry();
}

/// Where a vcpu begins that is to make a call again: with the pointer of that call in rsp, and the same gs base as before.
pub(crate) fn entry() -> u64 {
    (stasis_reentry as *const ()).addr() as u64
}

/// Calls `f`, maybe more than once, and returns what the last call returned. `stack`, which nobody else writes, holds the pointer until
/// then (RE1).
///
/// # Safety
/// A call of `f` may end at any instruction, and another one begin; the first one's frames are never returned to. So at any instruction at
/// which the vcpu may be lost they own nothing that has to be dropped, and lend nothing to anybody. `f` does not unwind. What the caller
/// has proved, such as a token that it holds, is so again when the vcpu is started.
pub(crate) unsafe fn call<T, F: Fn() -> T>(stack: &AtomicU64, f: F) -> T {
    struct Job<F, T> {
        f: F,
        result: Cell<Option<T>>,
    }
    extern "C" fn run<T, F: Fn() -> T>(job: *const c_void) {
        // SAFETY: `call` below lends its `job`, which stands still until this returns or is begun again.
        let job = unsafe { &*job.cast::<Job<F, T>>() };
        job.result.set(Some((job.f)()));
    }
    let job = Job { f, result: Cell::new(None) };
    // SAFETY: `job` is what `run` takes, for as long as the call lasts. The word is written by this vcpu alone.
    unsafe { stasis_reentry_call((&raw const job).cast(), run::<T, F>, stack.as_ptr()) };
    job.result.into_inner().expect("it has returned from a call of `f`")
}

global_asm!(
    ".pushsection .text.stasis_reentry, \"ax\", @progbits",
    // Called as C functions are: rdi, argument; rsi, function; rdx, where the pointer goes. Pushes a `Saved` from its end on.
    ".globl stasis_reentry_call",
    ".type stasis_reentry_call, @function",
    "stasis_reentry_call:",
    "    push rbp",
    "    push rbx",
    "    push r12",
    "    push r13",
    "    push r14",
    "    push r15",
    "    push rdi",
    "    push rsi",
    "    sub rsp, {function}",
    "    mov [rdx], rsp",
    "1:",
    "    mov rdi, [rsp + {argument}]",
    "    call [rsp + {function}]",
    "    add rsp, {r15}",
    "    pop r15",
    "    pop r14",
    "    pop r13",
    "    pop r12",
    "    pop rbx",
    "    pop rbp",
    "    ret",
    ".size stasis_reentry_call, . - stasis_reentry_call",
    "",
    // Entered by Xen, on a vcpu that has just been initialised: rsp points to a `Saved`, upcalls are masked, all other registers mean nothing.
    // Leaves by the other function's return. rbp as it was, so that a walk along the frame pointers goes on.
    ".globl stasis_reentry",
    ".type stasis_reentry, @function",
    "stasis_reentry:",
    "    cld",
    "    mov rbp, [rsp + {rbp}]",
    "    jmp 1b",
    ".size stasis_reentry, . - stasis_reentry",
    ".popsection",
    function = const offset_of!(Saved, function),
    argument = const offset_of!(Saved, argument),
    r15 = const offset_of!(Saved, r15),
    rbp = const offset_of!(Saved, rbp),
);

#[cfg(test)]
mod tests {
    use core::arch::asm;

    use xen_sys::primitive::sync::atomic::Ordering;

    use super::*;

    /// What a vcpu does that is started again: nothing is left of its registers.
    fn begin_again(stack: u64) -> ! {
        // SAFETY: in the tests below `stack` is that of a call that has not returned, and what is left of this thread's stack owns nothing.
        unsafe {
            asm!(
                "mov rsp, {stack}",
                "xor ebx, ebx",
                "xor ebp, ebp",
                "xor r12d, r12d",
                "xor r13d, r13d",
                "xor r14d, r14d",
                "xor r15d, r15d",
                "jmp {entry}",
                stack = in(reg) stack,
                entry = sym stasis_reentry,
                options(noreturn)
            );
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "assembly")]
    fn who_is_lost_in_a_call_makes_it_again() {
        let stack = AtomicU64::new(0);
        let calls = Cell::new(0);
        // SAFETY: the function owns nothing.
        let result = unsafe {
            call(&stack, || {
                calls.set(calls.get() + 1);
                if calls.get() < 4 {
                    begin_again(stack.load(Ordering::Relaxed));
                }
                calls.get() * 10
            })
        };
        assert_eq!((result, calls.get()), (40, 4));
    }

    /// Where it was called, and whether it has been again.
    struct Once {
        stack: AtomicU64,
        again: Cell<bool>,
    }

    extern "C" fn lost_once(once: *const c_void) {
        // SAFETY: the test below passes it.
        let once = unsafe { &*once.cast::<Once>() };
        if !once.again.replace(true) {
            begin_again(once.stack.load(Ordering::Relaxed));
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "assembly")]
    fn the_callers_registers_are_as_they_were() {
        let once = Once { stack: AtomicU64::new(0), again: Cell::new(false) };
        let f: extern "C" fn(*const c_void) = lost_once;
        let (r12, r13, r14, r15): (u64, u64, u64, u64);
        // SAFETY: a call of a C function. rbx and rbp, which no operand may name, are compared on its stack.
        let same = unsafe {
            let same: u64;
            asm!(
                "push rbx",
                "push rbp",
                "mov rbx, rsp",
                "call {call}",
                "xor eax, eax",
                "cmp rbx, rsp",
                "sete al",
                "cmp rbp, [rsp]",
                "sete cl",
                "and al, cl",
                "pop rbp",
                "pop rbx",
                call = sym stasis_reentry_call,
                inout("rdi") &raw const once => _,
                inout("rsi") f => _,
                inout("rdx") once.stack.as_ptr() => _,
                inout("r12") 12_u64 => r12,
                inout("r13") 13_u64 => r13,
                inout("r14") 14_u64 => r14,
                inout("r15") 15_u64 => r15,
                out("rax") same,
                clobber_abi("C"),
            );
            same
        };
        assert!(once.again.get(), "it was lost");
        assert_eq!((r12, r13, r14, r15, same), (12, 13, 14, 15, 1));
    }

    #[test]
    #[cfg_attr(miri, ignore = "assembly")]
    fn who_is_not_lost_calls_once() {
        let stack = AtomicU64::new(0);
        let calls = Cell::new(0);
        // SAFETY: it is never lost.
        let result = unsafe { call(&stack, || calls.replace(calls.get() + 1)) };
        assert_eq!((result, calls.get()), (0, 1));
        assert_eq!(stack.load(Ordering::Relaxed) % 16, 0, "as the ABI wants it at a call");
    }
}

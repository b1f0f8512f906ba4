//! [`call`]: a function that a vcpu which was lost in it calls again, in another life of the domain, as if it had not begun.
//!
//! What is lost is a vcpu's registers; its stack is memory, and stays. So before the function is called the callee-saved registers
//! and the function itself are put on the stack, and the stack's pointer is given away. A vcpu that is started at [`entry`] with that pointer takes up
//! the call from there, and returns from it to whoever made it, once in all.
//!
//! - RE1: the pointer that [`call`] stores is good until that call returns. What the vcpu had below it is gone when it is used, without
//!   having been dropped.
//!
//! Suspend: this is what it is for. Turned down: to return twice, as `setjmp` does, which the compiler does not know of.

use core::arch::global_asm;
use core::ffi::c_void;

use xen_sys::primitive::sync::atomic::AtomicU64;

unsafe extern "C" {
    fn stasis_reentry_call(argument: *const c_void, f: extern "C" fn(*const c_void), stack: *mut u64);
    fn stasis_reentry();
}

/// Where a vcpu begins that is to take up a call.
pub(crate) fn entry() -> u64 {
    (stasis_reentry as *const ()).addr() as u64
}

/// Calls `f`, maybe more than once, and returns what the last call returned. `stack` holds the pointer until then (RE1).
///
/// # Safety
/// A call of `f` may end at any instruction, and another one begin; the first one's frames are never returned to. So at any instruction in which the vcpu
/// may be lost they own nothing that has to be dropped, and lend nothing to anybody.
pub(crate) unsafe fn call<T, F: Fn() -> T>(stack: &AtomicU64, f: F) -> T {
    struct Frame<F, T> {
        f: F,
        result: core::cell::Cell<Option<T>>,
    }
    extern "C" fn run<T, F: Fn() -> T>(frame: *const c_void) {
        // SAFETY: that of `call`, which stands still meanwhile.
        let frame = unsafe { &*frame.cast::<Frame<F, T>>() };
        frame.result.set(Some((frame.f)()));
    }
    let frame = Frame { f, result: core::cell::Cell::new(None) };
    // SAFETY: `frame` is what `run` takes, for as long as the call lasts. The word is written by this vcpu alone.
    unsafe { stasis_reentry_call((&raw const frame).cast(), run::<T, F>, stack.as_ptr()) };
    frame.result.into_inner().expect("it has returned from a call of `f`")
}

// rdi: argument, rsi: function, rdx: where the pointer goes. From the pointer up: the function, the argument, r15 to r12, rbx, rbp, the return
// address. Six registers, two words and the return address leave the stack a word short of 16 bytes; a call wants it whole.
global_asm!(
    ".pushsection .text.stasis_reentry, \"ax\", @progbits",
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
    "    sub rsp, 8",
    "    mov [rdx], rsp",
    "1:",
    "    mov rdi, [rsp + 16]",
    "    call [rsp + 8]",
    "    add rsp, 24",
    "    pop r15",
    "    pop r14",
    "    pop r13",
    "    pop r12",
    "    pop rbx",
    "    pop rbp",
    "    ret",
    ".size stasis_reentry_call, . - stasis_reentry_call",
    "",
    // rbp as it was, so that a walk along the frame pointers goes on.
    ".globl stasis_reentry",
    ".type stasis_reentry, @function",
    "stasis_reentry:",
    "    cld",
    "    mov rbp, [rsp + 64]",
    "    jmp 1b",
    ".size stasis_reentry, . - stasis_reentry",
    ".popsection",
);

#[cfg(test)]
mod tests {
    use core::arch::asm;
    use core::cell::Cell;

    use xen_sys::primitive::sync::atomic::Ordering;

    use super::*;

    /// What a vcpu does that is started anew: nothing is left of its registers.
    fn begin_anew(stack: u64) -> ! {
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
    fn who_is_lost_in_a_call_takes_it_up_again() {
        let stack = AtomicU64::new(0);
        let calls = Cell::new(0);
        let kept: [u64; 6] = core::hint::black_box([1, 2, 3, 4, 5, 6]);
        // SAFETY: the function owns nothing.
        let result = unsafe {
            call(&stack, || {
                calls.set(calls.get() + 1);
                if calls.get() < 4 {
                    begin_anew(stack.load(Ordering::Relaxed));
                }
                calls.get() * 10
            })
        };
        assert_eq!((result, calls.get()), (40, 4));
        assert_eq!(kept.iter().sum::<u64>(), 21, "the caller's registers are as they were");
    }

    #[test]
    fn who_is_not_lost_calls_once() {
        let stack = AtomicU64::new(0);
        let calls = Cell::new(0);
        // SAFETY: it is never lost.
        let result = unsafe { call(&stack, || calls.replace(calls.get() + 1)) };
        assert_eq!((result, calls.get()), (0, 1));
        assert_eq!(stack.load(Ordering::Relaxed) % 16, 0, "as the ABI wants it at a call");
    }
}

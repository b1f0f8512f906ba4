//! The `syscall` instruction, by number of arguments. Everything else in `hypercall` goes through here.
//!
//! Number in rax, arguments in rdi, rsi, rdx, r10, r8, result in rax (xen/include/public/arch-x86/xen-x86_64.h).
//!
//! - HC1: rcx and r11 are lost, since `syscall` itself puts rip and rflags there.
//! - HC2: all five argument registers are lost: a debug Xen destroys those that it thinks the call has, and a call that
//!   Xen restarts gets rewritten ones. All five are declared lost for every call, since Xen's idea of how many a call
//!   has is not always the header's (`SCHEDOP_shutdown` reads a third).
//! - HC3: memory is not declared untouched: calls read and write it.
//! - HC4: `nostack` holds: `syscall` pushes nothing. Xen does push frames below rsp, for upcalls, but it does that at
//!   any instruction and not only here, so the image is built without a red zone as a whole (the default of
//!   x86_64-unknown-none), and on other targets these instructions never run.
//! - HC5: rflags is declared lost, though Xen restores it; nothing would be gained.
//!
//! Contexts: kernel mode only, any upcall mask. Inline `syscall` rather than the hypercall page: there is nothing to
//! place, to map executable or to wait for before the first call.

use core::arch::asm;

/// What a hypercall returns where there is no Xen: -ENOSYS.
const NO_XEN: i64 = -38;

macro_rules! hypercall {
    ($(#[$meta:meta])* $name:ident($($arg:ident: $reg:tt),*; $($lost:tt),*)) => {
        $(#[$meta])*
        /// # Safety
        /// The safety conditions of the call `op`, for these arguments; addresses are valid for what Xen does there.
        #[inline(always)]
        pub(super) unsafe fn $name(op: u64, $($arg: u64),*) -> i64 {
            if cfg!(not(target_os = "none")) {
                return NO_XEN;
            }
            let ret: i64;
            // SAFETY: what Xen does to memory is the caller's to answer for; the registers it changes are all declared
            // (HC1, HC2), and the options hold by HC3 and HC4.
            unsafe {
                asm!(
                    "syscall",
                    inlateout("rax") op => ret,
                    $(inlateout($reg) $arg => _,)*
                    $(lateout($lost) _,)*
                    lateout("rcx") _,
                    lateout("r11") _,
                    options(nostack),
                );
            }
            ret
        }
    };
}

hypercall! {
    /// A hypercall with one argument.
    hypercall1(a1: "rdi"; "rsi", "rdx", "r10", "r8")
}
hypercall! {
    /// A hypercall with two arguments.
    hypercall2(a1: "rdi", a2: "rsi"; "rdx", "r10", "r8")
}
hypercall! {
    /// A hypercall with three arguments.
    hypercall3(a1: "rdi", a2: "rsi", a3: "rdx"; "r10", "r8")
}
hypercall! {
    /// A hypercall with four arguments.
    hypercall4(a1: "rdi", a2: "rsi", a3: "rdx", a4: "r10"; "r8")
}

#[cfg(test)]
mod tests {
    use super::{hypercall1, hypercall4};

    #[test]
    fn without_xen_nothing_happens_but_enosys() {
        // Linux's number 60 ends the process: if the instruction ran, this test would not return.
        // SAFETY: off the bare-metal target no instruction is executed.
        let ret = unsafe { hypercall1(60, 0) };
        assert_eq!(ret, -i64::from(crate::Errno::ENOSYS.code()));
        // SAFETY: as above.
        let ret = unsafe { hypercall4(60, 1, 2, 3, 4) };
        assert_eq!(ret, -38);
    }
}

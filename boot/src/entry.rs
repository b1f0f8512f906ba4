//! The first instructions.
//!
//! `stasis_entry` — entered by Xen, once, on vcpu 0. On the builder's one-page boot stack, upcalls masked, all ports
//! unmasked, rsi = VA of start_info, ds = es = fs = gs = 0, no trap table. Moves to the boot stack in the image, which
//! has a guard page below it, and calls `stasis_main(start_info, builder's stack top)`, which does not return.
//!
//! `secondary_entry` — entered by Xen after `VCPUOP_up`, once for each other vcpu, on the stack that the
//! context names (its top, 16-byte aligned), upcalls masked, gs base = its area, rdi = what [`SecondaryMain`] gets.
//!
//! Both clear rbp, so that a walk along the frame pointers ends here, and DF, which Xen leaves as it was.

use core::arch::global_asm;

use xen_sys::abi::xen::StartInfo;

/// What a secondary vcpu runs first, in Rust: the symbol `stasis_secondary_main`, which `kernel` defines.
pub type SecondaryMain = unsafe extern "C" fn(argument: u64) -> !;

unsafe extern "C" {
    /// Defined by `kernel`. Named here so that the call below is checked against a declared type.
    fn stasis_main(start_info: *const StartInfo, builder_stack_top: u64) -> !;
    fn stasis_secondary_main(argument: u64) -> !;
    fn stasis_secondary_entry();
}

const _: SecondaryMain = stasis_secondary_main;

/// The address at which a secondary vcpu's context starts.
pub fn secondary_entry() -> u64 {
    (stasis_secondary_entry as *const ()).addr() as u64
}

global_asm!(
    ".pushsection .text.stasis_entry, \"ax\", @progbits",
    ".globl stasis_entry",
    ".type stasis_entry, @function",
    "stasis_entry:",
    "    cld",
    "    xor ebp, ebp",
    "    mov rdi, rsi",
    "    mov rsi, rsp",
    "    lea rsp, [rip + stasis_boot_stack_top]",
    "    call {main}",
    "    ud2",
    ".size stasis_entry, . - stasis_entry",
    "",
    ".globl stasis_secondary_entry",
    ".type stasis_secondary_entry, @function",
    "stasis_secondary_entry:",
    "    cld",
    "    xor ebp, ebp",
    "    call {secondary_main}",
    "    ud2",
    ".size stasis_secondary_entry, . - stasis_secondary_entry",
    ".popsection",
    main = sym stasis_main,
    secondary_main = sym stasis_secondary_main,
);

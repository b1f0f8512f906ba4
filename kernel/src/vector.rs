//! Vector registers: x87, SSE and AVX state. The kernel's own code has none; this is for tasks that use them on purpose, each on its own CPU.
//!
//! Owns what switches AVX on for a vcpu, and what carries vcpu 0's state over a checkpoint. Xen keeps each vcpu's state over whatever
//! else runs on its processor, and the toolstack saves and restores all of it. Not so in the same domain: when it goes on, vcpu 0's
//! context has been set anew from a form of it that holds x87 and SSE alone, and the upper halves of its YMM registers are zero
//! (xen/arch/x86/i387.c, `vcpu_setup_fpu`). So vcpu 0 saves them itself, around the hypercall. With AVX switched on that is 14
//! cache lines of the stack, without it a look at a flag.
//!
//! Suspend: XCR0 and the bit of CR4 are *kept*, by the toolstack too. Turned down: AVX-512, which no machine of ours has; saving for
//! other vcpus, whose state nobody touches.

use core::arch::asm;

use percpu::CpuId;
use xen_sys::primitive::sync::atomic::{AtomicBool, Ordering};

const CR4_OSXSAVE: u64 = 1 << 18;
/// Bits of leaf 1's ecx.
const CPUID_XSAVE: u32 = 1 << 26;
const CPUID_AVX: u32 = 1 << 28;
/// x87, SSE and AVX in XCR0.
const STATE: u32 = 0b111;

/// vcpu 0 has AVX switched on.
static BOOT_HAS_AVX: AtomicBool = AtomicBool::new(false);

/// The widest registers that a vcpu has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Width {
    /// 16 of 128 bits: every x86-64.
    Xmm,
    /// 16 of 256 bits.
    Ymm,
}

impl Width {
    /// As people call the registers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Width::Xmm => "xmm",
            Width::Ymm => "ymm",
        }
    }

    /// Words of 64 bits in each.
    pub(crate) fn words(self) -> usize {
        match self {
            Width::Xmm => 2,
            Width::Ymm => 4,
        }
    }
}

/// The 16 registers as they are in memory, four words each; the narrow ones leave the upper two alone.
#[derive(Clone, PartialEq, Eq, Debug)]
#[repr(C, align(32))]
pub(crate) struct Registers(pub(crate) [[u64; 4]; 16]);

/// Switches on what this CPU has. Context: a task, or boot, on each CPU for itself.
pub(crate) fn enable_here() -> Width {
    let features = cpuid(1)[2];
    if features & CPUID_XSAVE == 0 || features & CPUID_AVX == 0 || cpuid(0xd)[0] & STATE != STATE {
        return Width::Xmm;
    }
    // SAFETY: Xen does both for a vcpu that it shows these features. No instruction of ours depends on what is switched on.
    unsafe {
        asm!(
            "mov {cr4}, cr4",
            "or {cr4}, {osxsave}",
            "mov cr4, {cr4}",
            "xsetbv",
            cr4 = out(reg) _,
            osxsave = const CR4_OSXSAVE,
            in("ecx") 0, in("eax") STATE, in("edx") 0,
            options(nostack),
        );
    }
    if percpu::current() == CpuId::BOOT {
        // ORDERING: Relaxed, read on the same CPU.
        BOOT_HAS_AVX.store(true, Ordering::Relaxed);
    }
    Width::Ymm
}

/// CPUID as Xen has it for this domain: the prefix has Xen emulate the instruction, which shows the machine's features otherwise.
fn cpuid(leaf: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: reads; Xen knows the prefix, and touches these four registers.
    unsafe {
        asm!(
            "mov {b:r}, rbx",
            ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e",
            "cpuid",
            "xchg {b:r}, rbx",
            b = out(reg) b, inout("eax") leaf => a, inout("ecx") 0 => c, out("edx") d,
        );
    }
    [a, b, c, d]
}

/// Loads all registers of this CPU. They stay as they are until the next load here: nothing else of ours uses them.
pub(crate) fn load(width: Width, from: &Registers) {
    macro_rules! load {
        ($each:literal) => {
            // SAFETY: reads the 512 bytes of `from`, which are aligned. Code of this target keeps nothing in these registers;
            //   the wide form is for who has been told that it is there.
            unsafe {
                asm!(
                    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
                    $each,
                    ".endr",
                    in("rdi") from,
                    options(nostack, readonly, preserves_flags)
                );
            }
        };
    }
    match width {
        Width::Xmm => load!("movdqa xmm\\n, [rdi + 32 * \\n]"),
        Width::Ymm => load!("vmovdqa ymm\\n, [rdi + 32 * \\n]"),
    }
}

/// All registers of this CPU as they are; the upper halves are zero where there are none.
pub(crate) fn store(width: Width) -> Registers {
    let mut to = Registers([[0; 4]; 16]);
    macro_rules! store {
        ($each:literal) => {
            // SAFETY: writes the 512 bytes of `to`, which are aligned; for the wide form see `load`.
            unsafe {
                asm!(
                    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
                    $each,
                    ".endr",
                    in("rdi") &raw mut to,
                    options(nostack, preserves_flags)
                );
            }
        };
    }
    match width {
        Width::Xmm => store!("movdqa [rdi + 32 * \\n], xmm\\n"),
        Width::Ymm => store!("vmovdqa [rdi + 32 * \\n], ymm\\n"),
    }
    to
}

/// Room for vcpu 0's state while it is away: XSAVE's plain form, of 832 bytes with AVX.
///
/// `movaps` comes before XSAVE and XRSTOR for the lab's sake. Xen gives a vcpu its registers back at the first use after it was scheduled,
/// which it learns by #NM. Processors raise that for all three; QEMU's TCG for `movaps` alone, and then Xen's come over ours.
#[repr(C, align(64))]
pub(crate) struct Room {
    area: [u8; 832],
    taken: bool,
}

impl Room {
    pub(crate) const fn new() -> Room {
        Room { area: [0; 832], taken: false }
    }

    /// Keeps what this CPU has in its registers, if AVX is switched on. Context: vcpu 0, before a suspend.
    pub(crate) fn save(&mut self) {
        // ORDERING: Relaxed, written on the same CPU.
        self.taken = BOOT_HAS_AVX.load(Ordering::Relaxed);
        if self.taken {
            // SAFETY: the area is as long as the states of XCR0 take, aligned to 64, and its header was zero.
            unsafe {
                asm!(
                    "movaps xmm0, xmm0",
                    "xsave64 [{0}]",
                    in(reg) &raw mut self.area, in("eax") STATE, in("edx") 0,
                    options(nostack)
                );
            }
        }
    }

    /// Puts it back. Context: vcpu 0, after the same domain has gone on.
    pub(crate) fn restore(&self) {
        if self.taken {
            // SAFETY: as XSAVE has written it in this life of the domain. Code of this target keeps nothing in these registers.
            unsafe {
                asm!(
                    "movaps xmm0, xmm0",
                    "xrstor64 [{0}]",
                    in(reg) &raw const self.area, in("eax") STATE, in("edx") 0,
                    options(nostack, readonly)
                );
            }
        }
    }
}

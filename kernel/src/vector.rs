//! Vector registers: x87, SSE and AVX state. The kernel's own code has none; this is for tasks that use them on purpose, each on its own CPU.
//!
//! Owns what switches AVX on for a vcpu, and what carries the registers over a suspend where Xen and the toolstack do not. Xen keeps each vcpu's state over whatever
//! else runs on its processor. Over a suspend:
//!
//! | vcpu | in a new domain | in the same one |
//! |---|---|---|
//! | 0 | the toolstack saves and restores all of it | its context has been set anew from a form of it that holds x87 and SSE alone, and the upper halves of its YMM registers are zero (xen/arch/x86/i387.c, `vcpu_setup_fpu`): [`Kept`], with AVX switched on |
//! | any other | it is down, and started from nothing (`cpus::away`): [`Kept`], if it has [used](note_use) any | nobody touches it |
//!
//! That is 8 cache lines of the stack, with AVX 14; without use a look at a flag.
//!
//! Suspend: XCR0 and the bit of CR4 are *kept* on vcpu 0, and set anew on the others. Turned down: AVX-512, which no machine of ours has.

use core::arch::asm;

use core::mem::MaybeUninit;

use percpu::PerCpu;
use spin::Once;
use xen_sys::primitive::sync::atomic::{AtomicU8, Ordering};

const CR4_OSXSAVE: u64 = 1 << 18;
/// Bits of leaf 1's ecx.
const CPUID_XSAVE: u32 = 1 << 26;
const CPUID_AVX: u32 = 1 << 28;
/// x87, SSE and AVX in XCR0.
const STATE: u32 = 0b111;

/// What each CPU has in use: nothing, or a [`Width`] and one more. Written by its CPU.
static USED: Once<PerCpu<AtomicU8>> = Once::new();

const NO_USE: u8 = 0;
const USES_XMM: u8 = Width::Xmm as u8 + 1;

/// The widest registers that a vcpu has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
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

/// Makes room for what each CPU uses. Boot, once.
pub(crate) fn init(nr_cpus: usize) {
    USED.call_once(|| PerCpu::new(nr_cpus, |_| AtomicU8::new(NO_USE)));
}

fn used() -> &'static AtomicU8 {
    USED.get().expect("init() runs at boot, before any task").mine()
}

/// From here on this CPU's registers, so wide, hold what somebody wants. Context: that CPU.
pub(crate) fn note_use(width: Width) {
    let word = width as u8 + 1;
    // ORDERING: Relaxed twice, written by this CPU only.
    if used().load(Ordering::Relaxed) < word {
        used().store(word, Ordering::Relaxed);
    }
}

/// This CPU has just been started, with nothing switched on and nothing in its registers. Context: that CPU.
pub(crate) fn begin_anew() {
    // ORDERING: Relaxed, written by this CPU only.
    used().store(NO_USE, Ordering::Relaxed);
}

/// Switches on what this CPU has. Context: a task, or boot, on each CPU for itself.
pub(crate) fn enable_here() -> Width {
    let features = cpuid(1)[2];
    let avx = features & CPUID_XSAVE != 0 && features & CPUID_AVX != 0 && cpuid(0xd)[0] & STATE == STATE;
    let width = if avx { Width::Ymm } else { Width::Xmm };
    if avx {
        enable_avx();
    }
    note_use(width);
    width
}

/// Context: a CPU that has it.
fn enable_avx() {
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

/// Room for a CPU's state while it is away: FXSAVE's form, or XSAVE's plain one, of 832 bytes with AVX.
///
/// `movaps` comes before each instruction that saves or restores for the lab's sake. Xen gives a vcpu its registers back at the first use after it was scheduled,
/// which it learns by #NM. Processors raise that for all of them; QEMU's TCG for `movaps` alone, and then Xen's come over ours.
#[repr(C, align(64))]
struct Room([u8; 832]);

/// A CPU's vector registers over a suspend, if it has used any.
pub(crate) struct Kept {
    /// As [`USED`] was.
    used: u8,
    /// Written where that is not 0.
    room: MaybeUninit<Room>,
}

impl Kept {
    /// What this CPU has in its registers, if that is used. Context: that CPU, before a suspend.
    pub(crate) fn of_this_cpu() -> Kept {
        // ORDERING: Relaxed, written on the same CPU.
        let mut kept = Kept { used: used().load(Ordering::Relaxed), room: MaybeUninit::uninit() };
        match kept.used {
            NO_USE => {}
            USES_XMM => {
                // SAFETY: the area is of 512 bytes and more, and aligned.
                unsafe { asm!("movaps xmm0, xmm0", "fxsave64 [{0}]", in(reg) kept.room.as_mut_ptr(), options(nostack)) }
            }
            _ => {
                // XSAVE leaves alone what it does not write of its header.
                let room = kept.room.write(Room([0; 832]));
                // SAFETY: the area is as long as the states of XCR0 take, aligned to 64, and its header is zero.
                unsafe {
                    asm!(
                        "movaps xmm0, xmm0",
                        "xsave64 [{0}]",
                        in(reg) &raw mut *room, in("eax") STATE, in("edx") 0,
                        options(nostack)
                    );
                }
            }
        }
        kept
    }

    /// Puts back what vCPU 0 loses in the same domain. Context: vCPU 0.
    pub(crate) fn restore_in_same_domain(&self) {
        if self.used > USES_XMM {
            self.restore();
        }
    }

    /// Puts back what any other CPU has lost. Context: that CPU, started in a new domain.
    pub(crate) fn restore_in_new_domain(&self) {
        if self.used > USES_XMM {
            enable_avx();
        }
        self.restore();
    }

    fn restore(&self) {
        let room = self.room.as_ptr();
        match self.used {
            NO_USE => {}
            USES_XMM => {
                // SAFETY: as FXSAVE has written it. Code of this target keeps nothing in these registers.
                unsafe { asm!("movaps xmm0, xmm0", "fxrstor64 [{0}]", in(reg) room, options(nostack, readonly)) }
            }
            _ => {
                // SAFETY: as XSAVE has written it, for the same XCR0. Code of this target keeps nothing in these registers.
                unsafe {
                    asm!(
                        "movaps xmm0, xmm0",
                        "xrstor64 [{0}]",
                        in(reg) room, in("eax") STATE, in("edx") 0,
                        options(nostack, readonly)
                    );
                }
            }
        }
    }
}

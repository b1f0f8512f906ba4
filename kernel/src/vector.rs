//! Vector registers: x87, SSE and AVX state. The kernel's own code has none; this is for tasks that use them on purpose, each on its own CPU.
//!
//! Owns what switches AVX on for a vcpu, and what carries the registers over a suspend where Xen and the toolstack do not. Xen keeps each
//! vcpu's state over whatever else runs on its processor. Over a suspend:
//!
//! | vcpu | in a new domain | in the same one |
//! |---|---|---|
//! | 0 | the toolstack saves and restores all of it | its context has been set anew from a form of it that holds x87 and SSE alone, and the upper halves of its YMM registers are zero (xen/arch/x86/i387.c, `vcpu_setup_fpu`): [`Saved`], with AVX switched on |
//! | any other | it is down, and started from nothing (`cpus::away`): [`Saved`], if it has [used](note_use) any | nobody touches it |
//!
//! That is 8 cache lines of the stack, with AVX 14; without use a look at a flag.
//!
//! Suspend: XCR0 and the bit of CR4 are *kept* on vcpu 0, *rebuilt* on the others. Turned down: AVX-512, which no machine of ours has.

use core::arch::asm;
use core::mem::MaybeUninit;

use percpu::{CpuId, PerCpu};
use spin::Once;
use xen_sys::primitive::sync::atomic::{AtomicU8, Ordering};

const CR4_OSXSAVE: u64 = 1 << 18;
/// Bits of leaf 1's ecx.
const CPUID_XSAVE: u32 = 1 << 26;
const CPUID_AVX: u32 = 1 << 28;
/// x87, SSE and AVX in XCR0.
const STATE: u32 = 0b111;

/// What of its registers a CPU has in use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
enum InUse {
    Nothing,
    /// x87 and SSE.
    Xmm,
    /// AVX too, which is switched on.
    Ymm,
}

/// A word that holds an [`InUse`] and nothing else. Read and written by its CPU.
struct AtomicInUse(AtomicU8);

impl AtomicInUse {
    fn get(&self) -> InUse {
        // ORDERING: Relaxed, our own.
        match self.0.load(Ordering::Relaxed) {
            0 => InUse::Nothing,
            1 => InUse::Xmm,
            _ => InUse::Ymm,
        }
    }

    fn set(&self, in_use: InUse) {
        // ORDERING: Relaxed, our own.
        self.0.store(in_use as u8, Ordering::Relaxed);
    }
}

/// What each CPU has in use. Suspend: *kept*; *cleared* where a CPU that was down before is started in a new domain.
static IN_USE: Once<PerCpu<AtomicInUse>> = Once::new();

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

/// Makes room for what each CPU has in use. Boot, once.
pub(crate) fn init(nr_cpus: usize) {
    IN_USE.call_once(|| PerCpu::new(nr_cpus, |_| AtomicInUse(AtomicU8::new(InUse::Nothing as u8))));
}

fn in_use_here() -> &'static AtomicInUse {
    IN_USE.get().expect("init() runs at boot, before any task").mine()
}

/// From here on this CPU's registers, so wide, hold what somebody wants. Context: that CPU.
pub(crate) fn note_use(width: Width) {
    let used = match width {
        Width::Xmm => InUse::Xmm,
        Width::Ymm => InUse::Ymm,
    };
    let here = in_use_here();
    if here.get() < used {
        here.set(used);
    }
}

/// This CPU has just been started, with nothing switched on and nothing in its registers. Context: that CPU.
pub(crate) fn forget_use() {
    in_use_here().set(InUse::Nothing);
}

/// Switches on what this CPU has. Context: a task, or boot, on each CPU for itself.
pub(crate) fn enable_here() -> Width {
    let width = if has_avx() {
        enable_avx();
        Width::Ymm
    } else {
        Width::Xmm
    };
    note_use(width);
    width
}

fn has_avx() -> bool {
    let features = cpuid(1)[2];
    features & CPUID_XSAVE != 0 && features & CPUID_AVX != 0 && cpuid(0xd)[0] & STATE == STATE
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
#[repr(C, align(64))]
struct Room([u8; 832]);

/// A CPU's vector registers over a suspend, if they are in use.
///
/// `movaps` comes before each instruction that saves or restores for the lab's sake. Xen gives a vcpu its registers back at the first use
/// after it was scheduled, which it learns by #NM. Processors raise that for all of them; QEMU's TCG for `movaps` alone, and then Xen's come
/// over ours.
pub(crate) struct Saved {
    what: InUse,
    /// Written where that is not `Nothing`.
    room: MaybeUninit<Room>,
}

impl Saved {
    /// What this CPU would lose. Context: that CPU, before a suspend.
    pub(crate) fn of_this_cpu() -> Saved {
        let what = match in_use_here().get() {
            // Xen keeps it.
            InUse::Xmm if percpu::current() == CpuId::BOOT => InUse::Nothing,
            what => what,
        };
        let mut saved = Saved { what, room: MaybeUninit::uninit() };
        match what {
            InUse::Nothing => {}
            InUse::Xmm => {
                // SAFETY: the area is of 512 bytes and more, and aligned.
                unsafe {
                    asm!("movaps xmm0, xmm0", "fxsave64 [{0}]", in(reg) saved.room.as_mut_ptr(), options(nostack))
                }
            }
            InUse::Ymm => {
                // XSAVE leaves alone what it does not write of its header.
                let room = saved.room.write(Room([0; 832]));
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
        saved
    }

    /// Puts back what vcpu 0 has lost in the same domain. Context: vcpu 0.
    pub(crate) fn restore_in_same_domain(&self) {
        self.restore();
    }

    /// Puts back what any other CPU has lost. Context: that CPU, started in a new domain.
    ///
    /// # Panics
    /// If this machine has no AVX, and what runs here uses it. Where vcpu 0 uses it too the toolstack sees that in its state, and refuses.
    pub(crate) fn restore_in_new_domain(&self) {
        if self.what == InUse::Ymm {
            assert!(has_avx(), "this machine has no AVX, and the one that the domain comes from had");
            enable_avx();
        }
        self.restore();
    }

    fn restore(&self) {
        let room = self.room.as_ptr();
        match self.what {
            InUse::Nothing => {}
            InUse::Xmm => {
                // SAFETY: as FXSAVE has written it. Code of this target keeps nothing in these registers.
                unsafe { asm!("movaps xmm0, xmm0", "fxrstor64 [{0}]", in(reg) room, options(nostack, readonly)) }
            }
            InUse::Ymm => {
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

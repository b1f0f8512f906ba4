//! What user mode runs in tests, benches and `workload=user`: a few loops, in one piece of code that is the same at any address. It stands
//! among the image's constants, and is copied from there.
//!
//! A loop that does not end executes PAUSE: where QEMU counts instructions, one emulated processor runs at a time, and goes on to the
//! next there.

use core::arch::global_asm;

use mm::MmError;
use xen_sys::primitive::sync::atomic::Ordering;

use super::Process;
use crate::traps::Frame;

/// Where a program begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Program {
    /// Spins.
    Spin,
    /// Counts in the first word of its data without end, and sees each time whether all other registers hold what words 1 to 15 say:
    /// [`hold`]. If not, #UD.
    Count,
    /// The same count, and a `syscall` after each.
    Call,
    /// Writes to its own code.
    WriteCode,
    /// Reads at the address in rsi.
    Read,
    /// Jumps to the address in rsi.
    Jump,
    /// Masks interrupts.
    Privileged,
}

impl Program {
    fn label(self) -> *const u8 {
        match self {
            Program::Spin => &raw const stasis_program_spin,
            Program::Count => &raw const stasis_program_count,
            Program::Call => &raw const stasis_program_call,
            Program::WriteCode => &raw const stasis_program_write_code,
            Program::Read => &raw const stasis_program_read,
            Program::Jump => &raw const stasis_program_jump,
            Program::Privileged => &raw const stasis_program_privileged,
        }
    }

    /// Its first instruction, from the beginning of [`code`].
    pub(crate) fn entry(self) -> u64 {
        (self.label().addr() - (&raw const stasis_programs).addr()) as u64
    }
}

/// All of them.
pub(crate) fn code() -> &'static [u8] {
    let (start, end) = (&raw const stasis_programs, &raw const stasis_programs_end);
    // SAFETY: both are labels of one section of constants, the second behind the first.
    unsafe { core::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

/// The registers that [`Program::Count`] looks at, but for rsp, in the order in which it expects them from word 1 on.
pub(crate) fn held(registers: &mut Frame) -> [&mut u64; 15] {
    let Frame { rax, rbx, rcx, rdx, rsi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rsp, .. } = registers;
    [rax, rbx, rcx, rdx, rsi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rsp]
}

/// Fills the registers for [`Program::Count`] with numbers that follow from `seed`, and returns them for words 1 to 15.
pub(crate) fn hold(registers: &mut Frame, seed: u64) -> [u64; 15] {
    let mut words = [0; 15];
    for (n, (word, register)) in (1_u64..).zip(words.iter_mut().zip(held(registers))) {
        *word = (seed << 8 | n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        *register = *word;
    }
    words
}

/// A process of [`Program::Count`], with what its registers, and its words 1 to 15, hold from its start on.
///
/// # Errors
/// As for [`Process::new`].
pub(crate) fn counting(seed: u64) -> Result<(Process, [u64; 15]), MmError> {
    let mut process = Process::new(code(), Program::Count.entry())?;
    let words = hold(&mut process.registers, seed);
    for (n, word) in (1..).zip(words) {
        process.word(n).store(word, Ordering::Relaxed); // ORDERING: Relaxed, read in user mode, by the CPU that it runs on.
    }
    Ok((process, words))
}

unsafe extern "C" {
    static stasis_programs: u8;
    static stasis_program_spin: u8;
    static stasis_program_count: u8;
    static stasis_program_call: u8;
    static stasis_program_write_code: u8;
    static stasis_program_read: u8;
    static stasis_program_jump: u8;
    static stasis_program_privileged: u8;
    static stasis_programs_end: u8;
}

global_asm!(
    ".pushsection .rodata.stasis_programs, \"a\", @progbits",
    ".globl stasis_programs, stasis_program_spin, stasis_program_count, stasis_program_call, stasis_program_write_code",
    ".globl stasis_program_read, stasis_program_jump, stasis_program_privileged, stasis_programs_end",
    ".macro expect register, word",
    "    cmp \\register, [rdi + 8 * \\word]",
    "    jne 2f",
    ".endm",
    "stasis_programs:",
    "stasis_program_spin:",
    "1:  pause",
    "    jmp 1b",
    "stasis_program_count:",
    "1:  add qword ptr [rdi], 1",
    "    expect rax, 1",
    "    expect rbx, 2",
    "    expect rcx, 3",
    "    expect rdx, 4",
    "    expect rsi, 5",
    "    expect rbp, 6",
    "    expect r8, 7",
    "    expect r9, 8",
    "    expect r10, 9",
    "    expect r11, 10",
    "    expect r12, 11",
    "    expect r13, 12",
    "    expect r14, 13",
    "    expect r15, 14",
    "    expect rsp, 15",
    "    pause",
    "    jmp 1b",
    "2:  ud2",
    "stasis_program_call:",
    "1:  add qword ptr [rdi], 1",
    "    syscall",
    "    jmp 1b",
    "stasis_program_write_code:",
    "    mov byte ptr [rip + stasis_programs], 0",
    "    ud2",
    "stasis_program_read:",
    "    mov rax, [rsi]",
    "    ud2",
    "stasis_program_jump:",
    "    jmp rsi",
    "stasis_program_privileged:",
    "    cli",
    "    ud2",
    "stasis_programs_end:",
    ".purgem expect",
    ".popsection",
);

//! Dying, from any context: leave a short reason at a fixed symbol, stop the other vcpus, tell the console, crash the domain.
//!
//! The others are stopped by `VCPUOP_down`, which takes no IPI and asks nobody: it works on a vcpu that hangs with its upcalls
//! masked. It returns before the vcpu has stopped, so each is watched until it runs no more; only then is the console, whose
//! lock it may hold, taken from it. Their state stays for `xenctx` where the cfg says `on_crash="preserve"`.
//!
//! One CPU dies. Another that panics meanwhile waits to be stopped; one that panics while it dies crashes the domain at once.
//! Upcalls stay masked to the end: no handler runs in a dying kernel.
//!
//! The backtrace is raw return addresses, one a line, the first that of an exception plus 1; `cargo xtask` puts names to them. It is found along the frame
//! pointers, and only inside the stack that the walk began on.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::fmt::{self, Write};
use core::panic::PanicInfo;

use percpu::{CpuId, Quiesced};
use xen_sys::abi::sched::SHUTDOWN_crash;
use xen_sys::abi::vcpu::RUNSTATE_running;
use xen_sys::hypercall::{sched, vcpu};
use xen_sys::primitive::sync::atomic::{AtomicU32, Ordering};

use crate::logfmt::Line;
use crate::patience::Patience;
use crate::traps::{self, Frame};
use crate::{console, cpus, stacks, time};

/// Frames that a backtrace shows at most.
const MAX_FRAMES: usize = 32;

/// The reason, for who looks at memory from outside. Text up to the first 0.
///
/// - PA1: written only by the CPU that won `DYING`, once.
#[repr(transparent)]
pub(crate) struct Reason(UnsafeCell<[u8; 256]>);

// SAFETY: one CPU writes it (PA1) and none reads it.
unsafe impl Sync for Reason {}

/// Found by its name in the image's symbol table.
#[unsafe(no_mangle)]
static stasis_panic_reason: Reason = Reason(UnsafeCell::new([0; 256]));

/// The number of the CPU that dies, or [`NOBODY`].
static DYING: AtomicU32 = AtomicU32::new(NOBODY);
const NOBODY: u32 = u32::MAX;

struct ReasonWriter {
    written: usize,
}

impl Write for ReasonWriter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = 255_usize.saturating_sub(self.written);
        let count = text.len().min(room);
        // SAFETY: the only writer (PA1), within the array.
        let to = unsafe { (*stasis_panic_reason.0.get()).get_mut(self.written..self.written + count) };
        if let Some(to) = to {
            to.copy_from_slice(&text.as_bytes()[..count]);
        }
        self.written += count;
        Ok(())
    }
}

#[panic_handler]
fn rust_panic(info: &PanicInfo<'_>) -> ! {
    let rbp: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
    match info.location() {
        Some(at) => die(&info.message(), &format_args!("{}:{}", at.file(), at.line()), 0, rbp),
        None => die(&info.message(), &"unknown", 0, rbp),
    }
}

/// An exception that nothing in the kernel expects.
pub(crate) fn exception(frame: &Frame) -> ! {
    let name = traps::name(frame.vector);
    let message = format_args!(
        "{name}: error_code={:#x} cr2={:#x} {frame}",
        frame.error_code,
        percpu::vcpu_info().arch.cr2.load(Ordering::Relaxed) // ORDERING: Relaxed, to be printed only.
    );
    die(&message, &format_args!("{:#x}", frame.rip), frame.rip, frame.rbp)
}

fn die(message: &dyn fmt::Display, at: &dyn fmt::Display, pc: u64, rbp: u64) -> ! {
    core::mem::forget(percpu::mask_upcalls());
    let cpu = percpu::current();
    // ORDERING: AcqRel, pairs with itself on other CPUs: one is first, and it alone writes the reason (PA1). Acquire where
    //   another was: nothing is read because of it.
    match DYING.compare_exchange(NOBODY, cpu.vcpu(), Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        Err(dying) if dying == cpu.vcpu() => crash(),
        Err(_) => spin_for_ever(),
    }
    // Writing to the array cannot fail.
    let _ = write!(ReasonWriter { written: 0 }, "cpu {cpu} at {at}: {message}");
    if let Some(all_stopped) = stop_others(cpu) {
        // SAFETY: this function does not return.
        unsafe { console::seize(&all_stopped) };
        let mut line = Line::new("panic");
        line.field("cpu", &cpu);
        line.field("at", at);
        line.field("msg", message);
        console::print(&line);
        backtrace(cpu, pc, rbp);
        say_shutdown("crash");
        console::drain();
    }
    crash()
}

/// Stops all vcpus but this one; `None` if one still runs when patience is over.
fn stop_others(this: CpuId) -> Option<Quiesced> {
    let others = || CpuId::first(cpus::nr()).filter(move |cpu| *cpu != this);
    let mut patience = Patience::new(time::tsc());
    // Twice: in the first round vcpu 0 may be about to bring others up, and is stopped behind those.
    for _ in 0..2 {
        for other in others() {
            // A vcpu that was never started is down already.
            let _ = vcpu::down(other.vcpu());
        }
        for other in others() {
            while vcpu::get_runstate_info(other.vcpu()).is_ok_and(|info| info.state == RUNSTATE_running) {
                if !patience.lasts(time::tsc()) {
                    return None;
                }
                sched::yield_();
            }
        }
    }
    // SAFETY: each was seen not running after it had been asked down, and whoever could have brought it up again was stopped before that.
    Some(unsafe { Quiesced::assume() })
}

fn crash() -> ! {
    let _ = sched::shutdown(SHUTDOWN_crash);
    spin_for_ever()
}

fn backtrace(cpu: CpuId, pc: u64, mut rbp: u64) {
    let print = |pc: u64| crate::say!("backtrace", cpu = cpu, pc = format_args!("{pc:#x}"));
    // Whoever puts names to these takes 1 off each, to get from a return address to its call.
    if pc != 0 {
        print(pc + 1);
    }
    let Some(stack) = stacks::containing(rbp) else { return };
    for _ in 0..MAX_FRAMES {
        if rbp < stack.start || rbp + 16 > stack.end || !rbp.is_multiple_of(8) {
            return;
        }
        // SAFETY: 16 mapped bytes of a stack, by the check above; aligned.
        let [next, return_address] = unsafe { (rbp as *const [u64; 2]).read_volatile() };
        if return_address == 0 {
            return;
        }
        print(return_address);
        if next <= rbp {
            return;
        }
        rbp = next;
    }
}

/// The contract's last word.
pub(crate) fn say_shutdown(reason: &str) {
    crate::say!("shutdown", reason = reason);
}

fn spin_for_ever() -> ! {
    loop {
        sched::yield_();
    }
}

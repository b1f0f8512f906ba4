//! The console: lines in, from any CPU and any context; bytes out, through the PV ring or, in the initial domain,
//! through Xen.
//!
//! - A line is queued whole under a lock, with upcalls masked, and as much as fits goes into the ring at once. What does
//!   not fit waits in the queue, and goes when the daemon says that it has made room ([`task`]).
//! - When the queue itself is full, a task waits for the daemon and gives up the processor meanwhile. A daemon that takes
//!   nothing for as long as [`Patience`] lasts costs that line, and all others at once until it moves again; `lines.rs` has the
//!   table. No CPU waits for ever, and none in an upcall.
//! - Between quiesce and release nobody prints: the lock's holder could be a parked CPU. `smp` parks a CPU between
//!   tasks, when it holds no lock.
//! - Suspend: the ring and its indices are *kept*, the port is *rebuilt* by [`devices`], which then calls [`port_is_bound`].

use mm::MaskedLock;
use percpu::Quiesced;
use xen_sys::abi::io::console::XenconsInterface;
use xen_sys::hypercall::misc::console_io_write;
use xen_sys::hypercall::{evtchn, sched};
use xen_sys::primitive::sync::atomic::Ordering;

use super::lines::{Backend, Counts, Lines, Offered};
use super::ring::Ring;
use crate::logfmt::Line;
use crate::patience::Patience;
use crate::{devices, events, start_info, time, wait};

static CONSOLE: MaskedLock<Lines> = MaskedLock::new(Lines::new());

/// Set by the daemon's event, cleared by the task.
static EVENT: wait::Flag = wait::Flag::new();

/// Bytes that are taken from the ring before other tasks get their turn.
const TYPED_AT_ONCE: usize = 64;

fn with<R>(work: impl FnOnce(&mut Lines) -> R) -> R {
    CONSOLE.with(|lines| {
        let result = work(lines);
        if lines.take_to_tell() {
            tell_daemon(lines);
        }
        result
    })
}

/// Until the port is bound, at boot and after a restore, the daemon hears nothing; it is told once when it is bound.
fn tell_daemon(lines: &Lines) {
    // Refused and stale sends are counted there.
    if let Some(port) = devices::console_port() {
        let _ = events::get().send(port);
    } else if lines.is_dying() {
        // There will be no other time to tell it.
        let _ = evtchn::send(start_info::page().ports().console);
    }
}

fn write_to_hypervisor(bytes: &[u8]) -> bool {
    console_io_write(bytes).is_ok()
}

/// Connects the console of the initial domain.
pub(crate) fn connect_hypervisor() {
    with(|lines| lines.connect(Backend::Hypervisor(write_to_hypervisor)));
}

/// Connects the ring page; what was queued before goes out.
pub(crate) fn connect_ring(page: &'static XenconsInterface) {
    with(|lines| lines.connect(Backend::Ring(Ring::new(page))));
}

/// The daemon can be told from now on, and may have something to tell.
pub(crate) fn port_is_bound() {
    with(Lines::tell_again);
    EVENT.set();
}

/// What the daemon has written of the ring's indices, as one number; 0 without a ring. Context: task.
pub(crate) fn daemon_indices() -> u64 {
    with(|lines| lines.daemon_indices())
}

/// Marks the ring page dirty, just before a suspend. Context: task.
pub(crate) fn dirty_ring() {
    with(|lines| lines.dirty_ring());
}

/// What went wrong since boot. Context: any but quiesced.
pub(crate) fn counts() -> Counts {
    with(|lines| lines.counts())
}

/// Prints `line`. Any context but quiesced ones.
pub(crate) fn print(line: &Line) {
    // ORDERING: Relaxed, written by this CPU only.
    let masked = percpu::vcpu_info().evtchn_upcall_mask.load(Ordering::Relaxed) != 0;
    let mut patience = None;
    while with(|lines| lines.offer(line, masked)) == Offered::Full {
        let tsc = time::tsc();
        if !patience.get_or_insert_with(|| Patience::new(tsc)).lasts(tsc) {
            with(Lines::waited_in_vain);
            return;
        }
        sched::yield_();
    }
}

/// Waits until the daemon has taken everything, as long as that is of any use. Context: task, or dying.
pub(crate) fn drain() {
    let mut patience = Patience::new(time::tsc());
    let drained = || {
        with(|lines| {
            lines.pump();
            lines.is_drained()
        })
    };
    while !drained() && patience.lasts(time::tsc()) {
        sched::yield_();
    }
}

/// The daemon has taken output or has input for us. Context: upcall.
pub(crate) fn on_event() {
    EVENT.set();
}

/// Moves what waits in the queue whenever the daemon has made room, and hands lines that were typed to `command`. Whatever the
/// daemon does, other tasks and a rendezvous get their turn after [`TYPED_AT_ONCE`] bytes.
pub(crate) async fn task(mut command: impl FnMut(&str)) {
    let mut typed = arrayvec::ArrayString::<120>::new();
    loop {
        EVENT.wait().await;
        let mut buffer = [0_u8; TYPED_AT_ONCE];
        let count = with(|lines| {
            lines.pump();
            lines.read(&mut buffer)
        });
        for byte in &buffer[..count] {
            match byte {
                b'\r' | b'\n' if typed.is_empty() => {}
                b'\r' | b'\n' => {
                    command(&typed);
                    typed.clear();
                }
                // A line that is too long is cut; it is no command then.
                byte if byte.is_ascii_graphic() || *byte == b' ' => {
                    let _ = typed.try_push(char::from(*byte));
                }
                _ => {}
            }
        }
        if count == buffer.len() {
            EVENT.set();
        }
        wait::yield_now().await;
    }
}

/// Takes the console over for the last words of a CPU that dies. Whoever holds its lock, this CPU further up its stack or one
/// that has been stopped, has left the queue in order: its indices are changed last, by one store each.
///
/// # Safety
/// The caller must not return to what it was doing.
pub(crate) unsafe fn seize(_all_stopped: &Quiesced) {
    // SAFETY: all other CPUs are stopped, and this one will not go on with what it was at.
    unsafe { CONSOLE.break_open() };
    with(|lines| lines.last_words(write_to_hypervisor));
}

/// Says one event: `say!("event", key = value, …)`. Values are anything with `Display`.
#[macro_export]
macro_rules! say {
    ($event:literal $(, $key:ident = $value:expr)* $(,)?) => {{
        let mut line = $crate::logfmt::Line::new($event);
        $( line.field(stringify!($key), &$value); )*
        $crate::console::print(&line);
    }};
}

/// Text for the log, at `level`; dropped where the command line asks for less.
#[macro_export]
macro_rules! note {
    ($level:ident, $($text:tt)*) => {{
        if $crate::start::log_level() >= boot::LogLevel::$level {
            let mut line = $crate::logfmt::Line::new("note");
            line.field("level", &stringify!($level));
            line.field("msg", &format_args!($($text)*));
            $crate::console::print(&line);
        }
    }};
}

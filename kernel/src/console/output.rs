//! The console: lines in, from any CPU and any context; bytes out, through the PV ring or, in the initial domain,
//! through Xen.
//!
//! - A line is queued whole under a lock, with upcalls masked, and as much as fits goes into the ring at once. What does
//!   not fit waits in the queue, and goes when the daemon says that it has made room ([`task`]).
//! - When the queue itself is full, the writer waits for the daemon and gives up the processor meanwhile; a daemon that takes
//!   nothing for [`PATIENCE_NS`] costs the line, which is counted and told later: no CPU waits for ever.
//! - Between quiesce and release nobody prints: the lock's holder could be a parked CPU. `smp` parks a CPU between
//!   tasks, when it holds no lock.
//! - Suspend: the ring and its indices are *kept*, the port is *rebuilt* ([`set_port`]).

use spin::mutex::SpinMutex;
use xen_sys::abi::io::console::XenconsInterface;
use xen_sys::hypercall::misc::console_io_write;
use xen_sys::hypercall::{evtchn, sched};
use xen_sys::primitive::sync::atomic::{AtomicBool, Ordering};

use crate::logfmt::Line;
use crate::relax::GiveUp;
use crate::{time, wait};

use super::queue::Queue;
use super::ring::Ring;

/// How long a full queue may stay full before a line is given up.
const PATIENCE_NS: u64 = 5_000_000_000;

enum Backend {
    /// Not connected yet: lines are queued.
    None,
    /// The initial domain's.
    Hypervisor,
    Ring {
        ring: Ring,
        port: u32,
    },
}

struct Console {
    queue: Queue,
    backend: Backend,
    lost_lines: u64,
}

static CONSOLE: SpinMutex<Console, GiveUp> =
    SpinMutex::new(Console { queue: Queue::new(), backend: Backend::None, lost_lines: 0 });

/// Set by the daemon's event, cleared by the task.
static EVENT: wait::Flag = wait::Flag::new();
/// A CPU is dying and owns the console.
static SEIZED: AtomicBool = AtomicBool::new(false);

impl Console {
    /// Moves bytes from the queue to where they go; true if any went.
    fn pump(&mut self) -> bool {
        let mut moved = false;
        while !self.queue.is_empty() {
            let bytes = self.queue.front();
            let count = match &self.backend {
                Backend::None => 0,
                // Refused only where this is not the initial domain, which is not so here.
                Backend::Hypervisor => console_io_write(bytes).map_or(0, |()| bytes.len()),
                Backend::Ring { ring, .. } => ring.write(bytes),
            };
            if count == 0 {
                break;
            }
            self.queue.consume(count);
            moved = true;
        }
        if moved {
            self.notify();
        }
        moved
    }

    fn notify(&self) {
        if let Backend::Ring { port, .. } = self.backend {
            // A stale port, before it is rebound after a restore, is Xen's to refuse: the daemon gets told with the next line.
            let _ = evtchn::send(port);
        }
    }

    fn is_drained(&self) -> bool {
        self.queue.is_empty()
            && match &self.backend {
                Backend::Ring { ring, .. } => ring.is_drained(),
                Backend::None | Backend::Hypervisor => true,
            }
    }
}

/// Connects the console of the initial domain.
pub(crate) fn connect_hypervisor() {
    with(|console| {
        console.backend = Backend::Hypervisor;
        console.pump();
    });
}

/// Connects the ring page and its port; what was queued before goes out.
pub(crate) fn connect_ring(page: &'static XenconsInterface, port: u32) {
    with(|console| {
        console.backend = Backend::Ring { ring: Ring::new(page), port };
        console.pump();
    });
}

/// The ring's port after a restore. Context: vcpu 0, all others parked.
pub(crate) fn set_port(new: u32) {
    with(|console| {
        if let Backend::Ring { port, .. } = &mut console.backend {
            *port = new;
        }
    });
}

/// Marks the ring page dirty, just before a suspend. Context: vcpu 0, all others parked.
pub(crate) fn dirty_ring() {
    with(|console| {
        if let Backend::Ring { ring, .. } = &console.backend {
            ring.dirty();
        }
    });
}

fn with<R>(work: impl FnOnce(&mut Console) -> R) -> R {
    let _masked = percpu::mask_upcalls();
    work(&mut CONSOLE.lock())
}

/// Prints `line`. Any context but quiesced ones.
pub(crate) fn print(line: &Line) {
    let mut waiting_since = None;
    loop {
        let done = with(|console| {
            if console.lost_lines != 0 {
                let mut note = Line::new("console");
                note.field("lost_lines", &console.lost_lines);
                if push(&mut console.queue, &note) {
                    console.lost_lines = 0;
                }
            }
            let queued = push(&mut console.queue, line);
            let moved = console.pump();
            if moved {
                waiting_since = None;
            }
            queued
        });
        if done {
            return;
        }
        let now = time::system_ns();
        if now.saturating_sub(*waiting_since.get_or_insert(now)) > PATIENCE_NS {
            with(|console| console.lost_lines += 1);
            return;
        }
        sched::yield_();
    }
}

fn push(queue: &mut Queue, line: &Line) -> bool {
    let text = line.as_str().as_bytes();
    queue.room() > text.len() && queue.push(text) && queue.push(b"\n")
}

/// Waits until the daemon has taken everything, but not for ever: false if it did not. Context: task.
pub(crate) fn drain() -> bool {
    let start = time::system_ns();
    while time::system_ns().saturating_sub(start) < PATIENCE_NS {
        if with(|console| {
            console.pump();
            console.is_drained()
        }) {
            return true;
        }
        sched::yield_();
    }
    false
}

/// The daemon has taken output or has input for us. Context: upcall.
pub(crate) fn on_event() {
    EVENT.set();
}

/// Moves what waits in the queue whenever the daemon has made room, and hands lines that were typed to `command`.
pub(crate) async fn task(mut command: impl FnMut(&str)) {
    let mut typed = arrayvec::ArrayString::<120>::new();
    loop {
        EVENT.wait().await;
        let mut buffer = [0_u8; 64];
        let count = with(|console| {
            console.pump();
            let Backend::Ring { ring, .. } = &console.backend else { return 0 };
            let count = ring.read(&mut buffer);
            if count != 0 {
                console.notify();
            }
            count
        });
        if count == buffer.len() {
            EVENT.set();
        }
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
    }
}

/// Takes the console over for a CPU that dies; false if another one has done so before. All other vcpus are down, so a lock that is
/// held now is held for good.
pub(crate) fn seize() -> bool {
    // ORDERING: AcqRel, pairs with itself on other CPUs: one of them is first.
    if SEIZED.swap(true, Ordering::AcqRel) {
        return false;
    }
    if CONSOLE.is_locked() {
        // SAFETY: whoever held it is down, or is this very CPU further up its stack, and will not go on. The queue's invariants
        //   hold between any two statements of its functions: indices are changed last, by one store each.
        unsafe { CONSOLE.force_unlock() };
    }
    true
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

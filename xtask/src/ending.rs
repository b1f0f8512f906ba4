//! What is still to be done when a signal ends this process: Ctrl-C, SIGTERM or SIGHUP.
//!
//! Owns the list of it. A signal unwinds nothing and so drops nothing: whoever makes something that must not outlive us (a
//! child with children of its own, a temporary file, a terminal in raw mode, a domain on a machine that stays) leaves
//! word here how to end it, for as long as it exists. The words are carried out newest first, on the thread on which
//! ctrlc handles signals, so they may do what any code may.
//!
//! SIGKILL leaves no time for any of this; QEMU alone is ended even then (`lab::qemu`). Turned down: a flag that every
//! wait looks at, so that commands unwind by themselves; one wait that forgets it and Ctrl-C does nothing.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

type Action = Box<dyn FnOnce() + Send>;

/// All that is to be done, oldest first.
struct Words {
    begun: bool,
    next: u64,
    actions: Vec<(u64, Action)>,
}

static WORDS: Mutex<Words> = Mutex::new(Words { begun: false, next: 0, actions: Vec::new() });

fn words() -> MutexGuard<'static, Words> {
    // Actions run outside the lock, so nothing is half done in it.
    WORDS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Word that was left; taken back when this is dropped.
#[must_use = "dropping it takes the word back"]
#[derive(Debug)]
pub struct AtEnd(u64);

/// Leaves word: `action` is to be done when a signal ends us. At once where one is already doing so.
pub fn at_end(action: impl FnOnce() + Send + 'static) -> AtEnd {
    let mut words = words();
    let id = words.next;
    words.next += 1;
    if words.begun {
        drop(words);
        action();
    } else {
        words.actions.push((id, Box::new(action)));
    }
    AtEnd(id)
}

impl Drop for AtEnd {
    fn drop(&mut self) {
        words().actions.retain(|(id, _)| *id != self.0);
    }
}

/// Whether a signal is ending this process: what fails from here on fails because of that.
pub fn begun() -> bool {
    words().begun
}

/// Does all that is to be done. For the handler of the signals, which then exits.
pub fn carry_out() {
    words().begun = true;
    loop {
        let newest = words().actions.pop();
        match newest {
            Some((_, action)) => action(),
            None => return,
        }
    }
}

/// Does not return while a signal is ending the process. For whoever would take from the handler what it works with, begin
/// something new, report as failed what the signal has ended, or, as `main`, end the process before it.
pub fn give_way() {
    while begun() {
        std::thread::park();
    }
}

/// Has the process group that `child` leads killed with us, by this signal.
pub fn kill_group_of(child: &Child, signal: &'static str) -> AtEnd {
    let group = child.id();
    at_end(move || kill(&format!("-{group}"), signal))
}

/// Has `child`, which is in our own process group, killed with us.
pub fn kill_alone(child: &Child) -> AtEnd {
    let id = child.id();
    at_end(move || kill(&id.to_string(), "TERM"))
}

/// Sends a signal; `-ID` is a process group.
pub fn kill(target: &str, signal: &str) {
    // `std` sends no signals to groups; every shell does, in this spelling (dash and busybox take no `--`). All of them
    // may have ended by themselves just now.
    let script = format!("kill -{signal} {target}");
    let _ = Command::new("sh").arg("-c").arg(script).stdin(Stdio::null()).stderr(Stdio::null()).status();
}

/// A file or directory that is removed when this is dropped, and when a signal ends us.
#[derive(Debug)]
pub struct Temporary {
    path: PathBuf,
    _word: AtEnd,
}

impl Temporary {
    /// For what is about to be made at `path`.
    pub fn new(path: PathBuf) -> Temporary {
        let there = path.clone();
        Temporary { path, _word: at_end(move || remove(&there)) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    // It may never have been made, or be in its final place already.
    let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
}

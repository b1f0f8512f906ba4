//! [`Lines`]: what is behind the console's lock. Which lines wait, where they go, and who may wait for room.
//!
//! | the queue is full, and | the line |
//! |---|---|
//! | the daemon has moved bytes lately, the caller is a task | is offered again: the caller waits |
//! | nobody has the console, or Xen has it | is lost: waiting makes no room |
//! | the caller has upcalls masked, and is not dying | is lost: nobody waits for a daemon in an upcall |
//! | somebody has waited in vain since bytes moved last | is lost at once: one wait for all, not one for each line |
//!
//! Lost lines are counted, and told before the next line that finds room.
#![forbid(unsafe_code)]

use super::queue::Queue;
use super::ring::Ring;
use crate::logfmt::Line;

/// Where bytes go.
#[derive(Clone, Copy)]
pub(super) enum Backend {
    /// Not connected yet: lines are queued.
    None,
    /// Xen's console, by this function; whether it took the bytes. It refuses all but the initial domain's.
    Hypervisor(fn(&[u8]) -> bool),
    /// The daemon's ring.
    Ring(Ring),
}

/// What became of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(super) enum Offered {
    /// Queued, or gone out already.
    Taken,
    /// There is no room, and it is worth waiting for.
    Full,
    /// There is no room; counted.
    Lost,
}

/// How often something went wrong since boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counts {
    /// Lines for which there was no room.
    pub(crate) lost_lines: u64,
    /// Reads that found an index that cannot be.
    pub(crate) bad_indices: u64,
}

/// The console's state.
pub(super) struct Lines {
    queue: Queue,
    backend: Backend,
    counts: Counts,
    /// Of `counts.lost_lines`, those that have been told.
    told_lost_lines: u64,
    /// Somebody has waited in vain, and no bytes have moved since.
    stuck: bool,
    /// The kernel dies: whoever prints waits, whatever is masked.
    dying: bool,
    /// The ring has changed since the daemon was told last.
    to_tell: bool,
}

impl Lines {
    pub(super) const fn new() -> Lines {
        Lines {
            queue: Queue::new(),
            backend: Backend::None,
            counts: Counts { lost_lines: 0, bad_indices: 0 },
            told_lost_lines: 0,
            stuck: false,
            dying: false,
            to_tell: false,
        }
    }

    /// What was queued before goes out.
    pub(super) fn connect(&mut self, backend: Backend) {
        self.backend = backend;
        self.pump();
    }

    /// From now on one CPU prints its last words. Where nobody has the console yet, `hypervisor` is tried: it takes them in
    /// an initial domain and on a Xen built for debugging.
    pub(super) fn last_words(&mut self, hypervisor: fn(&[u8]) -> bool) {
        self.dying = true;
        if matches!(self.backend, Backend::None) {
            self.connect(Backend::Hypervisor(hypervisor));
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Takes `line`, if there is room. `masked`: the caller has upcalls masked.
    pub(super) fn offer(&mut self, line: &Line, masked: bool) -> Offered {
        self.pump();
        self.tell_lost();
        let taken = self.push(line);
        self.pump();
        let worth_waiting = matches!(self.backend, Backend::Ring(_)) && !self.stuck && (self.dying || !masked);
        match (taken, worth_waiting) {
            (true, _) => Offered::Taken,
            (false, true) => Offered::Full,
            (false, false) => {
                self.counts.lost_lines += 1;
                Offered::Lost
            }
        }
    }

    /// The writer of a line that was [`Offered::Full`] has waited long enough.
    pub(super) fn waited_in_vain(&mut self) {
        self.stuck = true;
        self.counts.lost_lines += 1;
    }

    /// Moves bytes from the queue to where they go.
    pub(super) fn pump(&mut self) {
        while !self.queue.is_empty() {
            let bytes = self.queue.front();
            let count = match &self.backend {
                Backend::None => 0,
                Backend::Hypervisor(write) => {
                    if write(bytes) {
                        bytes.len()
                    } else {
                        0
                    }
                }
                Backend::Ring(ring) => ring.write(bytes),
            };
            if count == 0 {
                return;
            }
            self.queue.consume(count);
            self.stuck = false;
            self.to_tell = true;
        }
    }

    /// Whether waiting for the daemon to take more is of no use: it has all, or is stuck, or there is none.
    pub(super) fn is_drained(&self) -> bool {
        match &self.backend {
            Backend::Ring(ring) => self.stuck || (self.queue.is_empty() && ring.is_drained()),
            Backend::None | Backend::Hypervisor(_) => true,
        }
    }

    /// Takes what has been typed, as far as `buffer` goes; says how many bytes.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> usize {
        let Backend::Ring(ring) = &self.backend else { return 0 };
        let Ok(count) = ring.read(buffer) else {
            self.counts.bad_indices += 1;
            return 0;
        };
        self.to_tell |= count != 0;
        count
    }

    /// What the daemon has written of the ring's indices, as one number; 0 without a ring.
    pub(super) fn daemon_indices(&self) -> u64 {
        if let Backend::Ring(ring) = &self.backend { ring.daemon_indices() } else { 0 }
    }

    /// Has log-dirty see the ring's page.
    pub(super) fn dirty_ring(&self) {
        if let Backend::Ring(ring) = &self.backend {
            ring.dirty();
        }
    }

    /// The daemon may not have heard of earlier changes.
    pub(super) fn tell_again(&mut self) {
        self.pump();
        self.to_tell = true;
    }

    pub(super) fn is_dying(&self) -> bool {
        self.dying
    }

    /// Whether the daemon is to be told of a change of the ring; asking means that it will be.
    pub(super) fn take_to_tell(&mut self) -> bool {
        core::mem::take(&mut self.to_tell) && matches!(self.backend, Backend::Ring(_))
    }

    fn tell_lost(&mut self) {
        let lost = self.counts.lost_lines - self.told_lost_lines;
        if lost != 0 {
            let mut note = Line::new("console");
            note.field("lost_lines", &lost);
            if self.push(&note) {
                self.told_lost_lines = self.counts.lost_lines;
            }
        }
    }

    fn push(&mut self, line: &Line) -> bool {
        let text = line.as_str().as_bytes();
        self.queue.room() > text.len() && self.queue.push(text) && self.queue.push(b"\n")
    }
}

#[cfg(test)]
mod tests {
    use xen_sys::abi::io::console::XenconsInterface;
    use xen_sys::primitive::sync::atomic::Ordering::Relaxed;

    use super::super::queue::QUEUE_BYTES;
    use super::*;
    use crate::patience::Patience;

    static REFUSES: fn(&[u8]) -> bool = |_| false;

    fn line() -> Line {
        let mut line = Line::new("e");
        line.field("padding", &"x".repeat(1000));
        line
    }

    fn fill(lines: &mut Lines) -> usize {
        (0..).take_while(|_| lines.offer(&line(), false) == Offered::Taken).count()
    }

    /// The daemon takes all that is in the ring.
    fn daemon_takes(page: &XenconsInterface) {
        page.out_cons.store(page.out_prod.load(Relaxed), Relaxed);
    }

    fn on_a_ring() -> (Box<Lines>, &'static XenconsInterface) {
        let page = super::super::ring::leaked_page();
        let mut lines = Box::new(Lines::new());
        lines.connect(Backend::Ring(Ring::new(page)));
        (lines, page)
    }

    /// As `output::drain`, with a clock that stands still: how often the daemon was waited for.
    fn drain(lines: &mut Lines) -> usize {
        let mut patience = Patience::with_looks(100);
        let mut looks = 0;
        while patience.lasts(0) {
            lines.pump();
            if lines.is_drained() {
                break;
            }
            looks += 1;
        }
        looks
    }

    #[test]
    fn nobody_waits_for_a_console_that_is_not_there() {
        let mut lines = Box::new(Lines::new());
        assert_eq!(lines.offer(&line(), false), Offered::Taken);
        assert_eq!(drain(&mut lines), 0);
        lines.last_words(REFUSES);
        assert_eq!(drain(&mut lines), 0, "as a domU, to which Xen's console is closed");
        assert!(fill(&mut lines) > 0);
        assert_eq!(lines.offer(&line(), false), Offered::Lost);
    }

    #[test]
    fn a_daemon_that_takes_nothing_ends_a_drain_without_a_clock() {
        let (mut lines, page) = on_a_ring();
        assert_eq!(lines.offer(&line(), false), Offered::Taken);
        assert_eq!(drain(&mut lines), 99);
        daemon_takes(page);
        assert_eq!(drain(&mut lines), 0);
    }

    #[test]
    fn a_stuck_daemon_costs_one_wait_until_it_moves() {
        let (mut lines, page) = on_a_ring();
        let filled = fill(&mut lines);
        assert!(filled >= QUEUE_BYTES / 1100);
        assert_eq!(lines.offer(&line(), false), Offered::Full);
        lines.waited_in_vain();
        assert_eq!(lines.offer(&line(), false), Offered::Lost);
        assert_eq!(lines.counts(), Counts { lost_lines: 2, bad_indices: 0 });
        assert_eq!(drain(&mut lines), 0, "nor is it waited for at the end");
        daemon_takes(page);
        assert_eq!(lines.offer(&line(), false), Offered::Taken);
        fill(&mut lines);
        assert_eq!(lines.offer(&line(), false), Offered::Full, "it is worth waiting again");
    }

    #[test]
    fn lost_lines_are_told_once() {
        let (mut lines, page) = on_a_ring();
        fill(&mut lines);
        assert_eq!(lines.offer(&line(), true), Offered::Lost);
        while !lines.is_drained() {
            daemon_takes(page);
            lines.pump();
        }
        // What the daemon is shown of one more line.
        let mut says = || {
            let from = page.out_cons.load(Relaxed);
            let _ = lines.offer(&Line::new("e"), false);
            let to = page.out_prod.load(Relaxed);
            daemon_takes(page);
            (from..to).map(|i| char::from(page.out[i as usize % page.out.len()].load(Relaxed))).collect::<String>()
        };
        assert_eq!(says(), "stasis: console lost_lines=1\nstasis: e\n");
        assert_eq!(says(), "stasis: e\n");
    }

    #[test]
    fn nobody_waits_in_an_upcall_but_the_dying() {
        let (mut lines, _) = on_a_ring();
        fill(&mut lines);
        assert_eq!(lines.offer(&line(), true), Offered::Lost);
        lines.last_words(REFUSES);
        assert_eq!(lines.offer(&line(), true), Offered::Full);
    }

    #[test]
    fn the_daemon_is_told_of_changes_only() {
        let (mut lines, page) = on_a_ring();
        assert!(!lines.take_to_tell());
        let _ = lines.offer(&line(), false);
        assert!(lines.take_to_tell() && !lines.take_to_tell());
        page.in_prod.store(5000, Relaxed);
        let mut buffer = [0; 16];
        assert_eq!(lines.read(&mut buffer), 0);
        assert!(!lines.take_to_tell());
        assert_eq!(lines.counts().bad_indices, 1);
        page.in_prod.store(3, Relaxed);
        assert_eq!(lines.read(&mut buffer), 3);
        assert!(lines.take_to_tell());
    }
}

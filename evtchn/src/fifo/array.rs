//! [`EventArray`]: the event words of all ports. One for the domain; grows by pages, which Xen gets to know one after
//! the other.
//!
//! A port that is beyond the array may be bound, and even fire: Xen keeps its event until the page comes.
//!
//! Suspend: *rebuilt*: the pages are kept, their words reset by vCPU 0 while all others are parked, and Xen is told of
//! all of them again. What is pending in the words of an earlier life means nothing.
//!
//! - EA1: `told` is even, twice the number of pages that Xen knows in this life; or odd, and one caller of
//!   [`EventArray::reach`] alone is telling Xen of the next.

use alloc::boxed::Box;
use core::ptr::NonNull;

use percpu::Quiesced;
use xen_sys::Errno;
use xen_sys::primitive::sync::atomic::{AtomicU32, Ordering};
use xen_sys::primitive::thread;

use super::word::EventWord;
use crate::chunks::{self, Chunks};
use crate::hypervisor::Hypervisor;
use crate::port::PortNr;

/// Ports that the ABI reaches, the invalid port 0 included.
pub(crate) const CAPACITY: usize = if cfg!(any(loom, miri)) { chunks::PORTS * 4 } else { 1 << 17 };

/// A page of event words.
#[repr(C, align(4096))]
pub(crate) struct EventPage {
    words: [EventWord; chunks::PORTS],
}

#[cfg(not(any(loom, shuttle, miri)))]
const _: () = assert!(size_of::<EventPage>() == 4096, "Xen takes pages");

impl EventPage {
    /// Made where it stays: on the way through the stack it would take up to 12 KiB of 32, for its alignment.
    fn new() -> Box<EventPage> {
        let mut page = Box::<EventPage>::new_uninit();
        // SAFETY: the field lies within the allocation.
        let words = unsafe { &raw mut (*page.as_mut_ptr()).words }.cast::<EventWord>();
        for n in 0..chunks::PORTS {
            // SAFETY: within the array, which has so many.
            let word = unsafe { words.add(n) };
            // SAFETY: the allocation is ours, and the place aligned for it.
            unsafe { word.write(EventWord::new()) };
        }
        // SAFETY: every word has been written, and there is nothing else in it.
        unsafe { page.assume_init() }
    }

    /// The words, for the model.
    #[cfg(not(target_os = "none"))]
    pub(crate) fn words(&self) -> &[EventWord] {
        &self.words
    }
}

/// See the head of this file.
pub(crate) struct EventArray {
    pages: Chunks<EventPage>,
    told: AtomicU32,
}

impl EventArray {
    pub(crate) fn new() -> EventArray {
        EventArray { pages: Chunks::new(CAPACITY), told: AtomicU32::new(0) }
    }

    /// The word of `nr`, if the array reaches so far.
    pub(crate) fn word(&self, nr: PortNr) -> Option<&EventWord> {
        let (page, place) = self.pages.of_port(nr.index())?;
        page.words.get(place)
    }

    /// Makes sure that the array, as Xen knows it, reaches to `nr`. Blocking: one hypercall for each new page, by one
    /// CPU at a time. Context: any but quiesced; not in upcalls.
    ///
    /// # Errors
    /// Xen's; `ENOSPC` beyond the ABI.
    pub(crate) fn reach(&self, xen: &impl Hypervisor, nr: PortNr) -> Result<(), Errno> {
        loop {
            // ORDERING: Acquire, pairs with the Release below: who goes on finds the pages in `Chunks`. What is in them
            //   `Chunks` publishes, and to Xen the hypercall.
            // Weakening fails in evtchn/tests/loom_event_array.rs.
            let told = self.told.load(Ordering::Acquire);
            let known = told / 2;
            if nr.index() / chunks::PORTS < known as usize {
                return Ok(());
            }
            // ORDERING: Relaxed on failure, the loop looks again. Acquire on success, pairs with the Release below: who
            //   tells Xen of a page does so after the one before.
            // UNTESTED Acquire: but for a page that Xen refused, the load above has acquired the same value.
            let mine = told.is_multiple_of(2)
                && self.told.compare_exchange(told, told + 1, Ordering::Acquire, Ordering::Relaxed).is_ok();
            if !mine {
                thread::yield_now();
                continue;
            }
            let done = self.tell(xen, known as usize);
            // ORDERING: Release, pairs with the Acquires above (EA1).
            // Weakening fails in evtchn/tests/loom_event_array.rs.
            self.told.store(told + if done.is_ok() { 2 } else { 0 }, Ordering::Release);
            done?;
        }
    }

    fn tell(&self, xen: &impl Hypervisor, page: usize) -> Result<(), Errno> {
        let page = self.pages.put(page, EventPage::new).ok_or(Errno::ENOSPC)?;
        // SAFETY: an event page; the array keeps it for as long as it lives itself, which is for ever in a domain.
        unsafe { xen.expand_array(xen.place_of(NonNull::from(page))) }
    }

    /// Begins another life: all ports masked, nothing pending, and Xen knows none of the pages.
    pub(crate) fn reset(&self, _quiesced: &Quiesced) {
        for word in self.pages.iter().flat_map(|page| &page.words) {
            word.reset();
        }
        // ORDERING: Relaxed: all other CPUs are parked, or not started.
        self.told.store(0, Ordering::Relaxed);
    }

    /// Tells Xen of all pages that there are, and there is at least one. After [`EventArray::reset`].
    ///
    /// # Errors
    /// Xen's.
    pub(crate) fn tell_all(&self, _quiesced: &Quiesced, xen: &impl Hypervisor) -> Result<(), Errno> {
        let pages = self.pages.iter().count().max(1);
        let last = PortNr::new(u32::try_from(pages * chunks::PORTS - 1).unwrap_or(u32::MAX)).ok_or(Errno::ENOSPC)?;
        self.reach(xen, last)
    }
}

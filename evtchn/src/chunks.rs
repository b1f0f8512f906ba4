//! [`Chunks`]: an array that grows piece by piece and never moves, for tables with an entry for each port.
//!
//! 131072 ports would cost a megabyte of slots and half of one of event words; a domain with a thousand vcpus uses a
//! few thousand ports. So a piece is allocated when the first port in it is bound. Readers are wait-free: one load
//! more than in a plain array, of a line that is written only when the array grows. Suspend: *kept*.
//!
//! - CH1: an entry is null, or points to a `T` from a `Box`, initialised before it was stored, which lives as long as
//!   the array.

use alloc::boxed::Box;
use core::ptr::{self, NonNull};

use xen_sys::primitive::sync::atomic::{AtomicPtr, Ordering};

/// Ports that a piece is for. Fewer where every atomic costs.
pub(crate) const PORTS: usize = if cfg!(loom) {
    8
} else if cfg!(miri) {
    64
} else {
    1024
};

/// As many pieces as the larger ABI has ports for. In place: a look at one costs no load of where they are.
const MOST: usize = if cfg!(loom) {
    16
} else if cfg!(any(miri, shuttle)) {
    4
} else {
    (1 << 17) / PORTS
};

/// See the head of this file.
pub(crate) struct Chunks<T> {
    chunks: [AtomicPtr<T>; MOST],
    /// How many of them may be used.
    nr: usize,
}

impl<T: Sync> Chunks<T> {
    /// Room for pieces with `nr_ports` ports in all; none of them is there.
    pub(crate) fn new(nr_ports: usize) -> Chunks<T> {
        Chunks {
            chunks: core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            nr: nr_ports.div_ceil(PORTS).min(MOST),
        }
    }

    /// How many pieces there can be.
    pub(crate) fn nr_max(&self) -> usize {
        self.nr
    }

    /// The piece in which port `index` is, and its place there. `None` where there is none.
    pub(crate) fn of_port(&self, index: usize) -> Option<(&T, usize)> {
        Some((self.get(index / PORTS)?, index % PORTS))
    }

    /// Piece `n`.
    pub(crate) fn get(&self, n: usize) -> Option<&T> {
        // ORDERING: Acquire, pairs with the Release in `put` (CH1).
        let chunk = NonNull::new(self.chunks.get(n)?.load(Ordering::Acquire))?;
        // SAFETY: initialised, and it lives as long as `self` (CH1). Only shared borrows of it are ever made, and T is Sync.
        Some(unsafe { chunk.as_ref() })
    }

    /// The pieces that are there.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        (0..self.nr_max()).filter_map(|n| self.get(n))
    }

    /// Piece `n`, made now if it is not there. Who comes second gets the first one's. `None` beyond the end.
    pub(crate) fn put(&self, n: usize, make: impl FnOnce() -> Box<T>) -> Option<&T> {
        if let Some(there) = self.get(n) {
            return Some(there);
        }
        let slot = self.chunks.get(n).filter(|_| n < self.nr)?;
        let new = Box::into_raw(make());
        // ORDERING: Release pairs with the Acquire in `get` (CH1). Acquire on failure, as in `get`: the other's
        //   piece is used.
        // Weakening the Release fails in evtchn/tests/loom_port_table.rs.
        // UNTESTED Acquire: our callers look the piece up anew before they read it.
        match slot.compare_exchange(ptr::null_mut(), new, Ordering::Release, Ordering::Acquire) {
            // SAFETY: from Box::into_raw above, and stored: it lives as long as `self` (CH1).
            Ok(_) => Some(unsafe { &*new }),
            Err(theirs) => {
                // SAFETY: from Box::into_raw above, and shown to nobody.
                drop(unsafe { Box::from_raw(new) });
                // SAFETY: initialised, and it lives as long as `self` (CH1).
                Some(unsafe { &*theirs })
            }
        }
    }
}

impl<T> Drop for Chunks<T> {
    fn drop(&mut self) {
        for slot in &self.chunks {
            // ORDERING: Relaxed, nobody else has the array.
            let chunk = slot.swap(ptr::null_mut(), Ordering::Relaxed);
            if !chunk.is_null() {
                // SAFETY: from Box::into_raw in `put` (CH1), and all borrows ended with the array's life.
                drop(unsafe { Box::from_raw(chunk) });
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    #[test]
    fn pieces_come_when_they_are_put() {
        let chunks = Chunks::<usize>::new(2 * PORTS + 1);
        assert_eq!(chunks.nr_max(), 3);
        assert_eq!(chunks.of_port(0), None);
        assert_eq!(chunks.put(1, || Box::new(7)), Some(&7));
        assert_eq!(chunks.put(1, || unreachable!("it is there")), Some(&7));
        assert_eq!(chunks.of_port(PORTS), Some((&7, 0)));
        assert_eq!(chunks.of_port(2 * PORTS - 1), Some((&7, PORTS - 1)));
        assert_eq!(chunks.of_port(2 * PORTS), None);
        assert_eq!(chunks.put(3, || unreachable!("beyond the end")), None);
        assert_eq!(chunks.iter().collect::<Vec<_>>(), [&7]);
    }

    #[test]
    fn two_who_put_get_the_same() {
        static DROPPED: AtomicUsize = AtomicUsize::new(0);
        struct Counted(usize);
        impl Drop for Counted {
            fn drop(&mut self) {
                DROPPED.fetch_add(1, Relaxed);
            }
        }
        let chunks = Arc::new(Chunks::<Counted>::new(1));
        let threads: Vec<_> = (0..4)
            .map(|n| {
                let chunks = chunks.clone();
                std::thread::spawn(move || chunks.put(0, || Box::new(Counted(n))).map(|counted| counted.0))
            })
            .collect();
        let got: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        assert!(got.iter().all(|one| *one == got[0] && one.is_some()));
        drop(chunks);
        assert!(DROPPED.load(Relaxed) >= 1, "the piece is freed with the array");
    }
}

//! The PV console's ring page (`xen/include/public/io/console.h`): bytes out to the daemon, bytes in from it.
//!
//! The page is the daemon's as much as ours. Indices run freely, are read once and checked; one of the daemon's that cannot
//! be is refused, so the worst that it can do is to lose output and input. Nothing is cached between calls: across save
//! and restore the indices in the page simply go on.

use xen_sys::abi::io::console::XenconsInterface;
use xen_sys::primitive::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// Our end of the ring.
#[derive(Clone, Copy)]
pub(super) struct Ring {
    page: &'static XenconsInterface,
}

/// The daemon says that there is more to read than a ring holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Impossible;

impl Ring {
    pub(super) fn new(page: &'static XenconsInterface) -> Ring {
        Ring { page }
    }

    /// Copies as much of `bytes` as there is room for; says how much that was. The daemon is to be told if it is not 0.
    pub(super) fn write(&self, bytes: &[u8]) -> usize {
        let ring = &self.page.out;
        // ORDERING: Relaxed, only we write `out_prod`.
        let produced = self.page.out_prod.load(Ordering::Relaxed);
        // ORDERING: Acquire, pairs with the daemon's barrier before it moved `out_cons`: it has read the bytes that we overwrite.
        let used = produced.wrapping_sub(self.page.out_cons.load(Ordering::Acquire)) as usize;
        let count = ring.len().saturating_sub(used).min(bytes.len());
        for (place, byte) in places(ring, produced).zip(&bytes[..count]) {
            // ORDERING: Relaxed, published by the index below.
            place.store(*byte, Ordering::Relaxed);
        }
        publish(&self.page.out_prod, produced, count);
        count
    }

    /// Whether the daemon has taken all that was written.
    pub(super) fn is_drained(&self) -> bool {
        // ORDERING: Relaxed both, nothing is read because of it.
        self.page.out_cons.load(Ordering::Relaxed) == self.page.out_prod.load(Ordering::Relaxed)
    }

    /// Takes what has been typed, as far as `buffer` goes; says how many bytes. The daemon is to be told if it is not 0.
    ///
    /// # Errors
    /// [`Impossible`], with nothing taken. Clamped instead, one bad index would be 2^32 bytes to read.
    pub(super) fn read(&self, buffer: &mut [u8]) -> Result<usize, Impossible> {
        let ring = &self.page.r#in;
        // ORDERING: Relaxed, only we write `in_cons`.
        let consumed = self.page.in_cons.load(Ordering::Relaxed);
        // ORDERING: Acquire, pairs with the daemon's barrier before it moved `in_prod`: the bytes are there.
        let available = self.page.in_prod.load(Ordering::Acquire).wrapping_sub(consumed) as usize;
        if available > ring.len() {
            return Err(Impossible);
        }
        let count = available.min(buffer.len());
        for (byte, place) in buffer[..count].iter_mut().zip(places(ring, consumed)) {
            // ORDERING: Relaxed, made visible by the load of `in_prod`.
            *byte = place.load(Ordering::Relaxed);
        }
        publish(&self.page.in_cons, consumed, count);
        Ok(count)
    }

    /// What the daemon has written of the indices, as one number.
    pub(super) fn daemon_indices(&self) -> u64 {
        // ORDERING: Relaxed both, to be compared only.
        let [taken, typed] = [&self.page.out_cons, &self.page.in_prod].map(|index| index.load(Ordering::Relaxed));
        u64::from(taken) << 32 | u64::from(typed)
    }

    /// Writes our own indices once more, so that log-dirty sees the page: what the daemon writes through its own mapping
    /// is not logged.
    pub(super) fn dirty(&self) {
        for index in [&self.page.out_prod, &self.page.in_cons] {
            // ORDERING: Relaxed, the value does not change.
            index.store(index.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// The places of a ring from free-running index `from` on.
fn places(ring: &[AtomicU8], from: u32) -> impl Iterator<Item = &AtomicU8> {
    ring.iter().cycle().skip(from as usize % ring.len())
}

fn publish(index: &AtomicU32, from: u32, count: usize) {
    // ORDERING: Release, pairs with the daemon's barrier after it read the index: the bytes were written, or read, before.
    index.store(from.wrapping_add(u32::try_from(count).unwrap_or(0)), Ordering::Release);
}

/// A page for life, as the real one is. Kept where Miri sees that it is not lost.
#[cfg(test)]
pub(super) fn leaked_page() -> &'static XenconsInterface {
    static PAGES: std::sync::Mutex<Vec<&'static XenconsInterface>> = std::sync::Mutex::new(Vec::new());
    let page: &'static XenconsInterface = Box::leak(Box::new(XenconsInterface::new()));
    PAGES.lock().expect("no test panics in there").push(page);
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> (Ring, &'static XenconsInterface) {
        let page = leaked_page();
        // Near the wrap of the index, as after 4 GiB of output.
        page.out_prod.store(u32::MAX - 5, Ordering::Relaxed);
        page.out_cons.store(u32::MAX - 5, Ordering::Relaxed);
        (Ring::new(page), page)
    }

    #[test]
    fn fills_up_and_goes_on() {
        let (ring, page) = ring();
        assert_eq!(ring.write(&[1; 3000]), 2048);
        assert_eq!(ring.write(b"x"), 0);
        assert!(!ring.is_drained());
        page.out_cons.store(page.out_cons.load(Ordering::Relaxed).wrapping_add(10), Ordering::Relaxed);
        assert_eq!(ring.write(&[2; 3000]), 10);
        let newest = page.out_prod.load(Ordering::Relaxed).wrapping_sub(1) as usize % 2048;
        assert_eq!(page.out[newest].load(Ordering::Relaxed), 2);
    }

    #[test]
    fn an_impossible_consumer_only_stops_output() {
        let (ring, page) = ring();
        page.out_cons.store(17, Ordering::Relaxed);
        page.out_prod.store(0, Ordering::Relaxed);
        assert_eq!(ring.write(b"lost to nobody"), 0);
    }

    #[test]
    fn reads_what_was_typed() {
        let (ring, page) = ring();
        page.r#in[1023].store(b'a', Ordering::Relaxed);
        page.r#in[0].store(b'b', Ordering::Relaxed);
        page.in_cons.store(1023, Ordering::Relaxed);
        page.in_prod.store(1025, Ordering::Relaxed);
        let mut buffer = [0; 16];
        assert_eq!(ring.read(&mut buffer), Ok(2));
        assert_eq!(&buffer[..2], b"ab");
        assert_eq!(ring.read(&mut buffer), Ok(0));
    }

    #[test]
    fn an_impossible_producer_is_refused() {
        let (ring, page) = ring();
        let mut buffer = [0; 2000];
        page.in_prod.store(1025, Ordering::Relaxed);
        assert_eq!(ring.read(&mut buffer), Err(Impossible));
        assert_eq!(page.in_cons.load(Ordering::Relaxed), 0);
        page.in_prod.store(u32::MAX, Ordering::Relaxed);
        assert_eq!(ring.read(&mut buffer), Err(Impossible));
        page.in_prod.store(1024, Ordering::Relaxed);
        assert_eq!(ring.read(&mut buffer), Ok(1024), "a full ring is possible");
    }
}

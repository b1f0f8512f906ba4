//! Our side of the shared page: bytes in and out of two 1 KiB rings, and the page's three status words.
//!
//! Runs under the store's lock, which makes us one producer of `req` and one consumer of `rsp`: in the pump, and at the end
//! of a quiesce ([`Ring::discard_replies`], [`Ring::error`]), in whichever task that is. Every call is wait-free and
//! bounded by 1024 bytes.
//!
//! xenstored is not trusted: each of its indices is read once, checked, and used from the copy; the free-running
//! values may start anywhere and wrap. Nothing is kept between calls, not even our own indices: at a restore
//! C xenstored sets all four to 0 and oxenstored keeps them, so the page is the only truth. That is the design that
//! was turned down: a shadow of our own indices would save one load per call and be wrong after every migration.
//!
//! Bells are not rung here. After a call that returns more than 0 the caller must ring (xenstored sleeps until then,
//! when it waits for room as well as when it waits for bytes).

use crate::error::RingFault;
use xen_sys::abi::io::xs_wire::{self as abi, XenstoreDomainInterface};
use xen_sys::primitive::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use xen_sys::primitive::sync::atomic::{AtomicU8, AtomicU32};

/// The bytes of each ring.
pub const RING_LEN: u32 = abi::XENSTORE_RING_SIZE;

/// Indices that claim more bytes than the ring has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadIndices {
    /// The consumer's, as read.
    pub cons: u32,
    /// The producer's, as read.
    pub prod: u32,
}

/// One direction: bytes and the two indices into them. Its length is a power of two, so that indices may wrap.
#[derive(Clone, Copy)]
pub struct Half<'p> {
    bytes: &'p [AtomicU8],
    cons: &'p AtomicU32,
    prod: &'p AtomicU32,
}

impl<'p> Half<'p> {
    /// A view of one direction. The page's have 1024 bytes; models use fewer.
    /// # Panics
    /// If the number of bytes is not a power of two.
    #[must_use]
    pub fn new(bytes: &'p [AtomicU8], cons: &'p AtomicU32, prod: &'p AtomicU32) -> Self {
        assert!(bytes.len().is_power_of_two());
        Self { bytes, cons, prod }
    }

    /// The slot that a free-running index stands for.
    fn slot(&self, index: u32) -> &'p AtomicU8 {
        &self.bytes[index as usize & (self.bytes.len() - 1)]
    }

    /// How many bytes are between the indices.
    fn used(&self, cons: u32, prod: u32) -> Result<usize, BadIndices> {
        let used = prod.wrapping_sub(cons) as usize;
        if used > self.bytes.len() { Err(BadIndices { cons, prod }) } else { Ok(used) }
    }

    /// As the producer: puts as many of `from` as there is room for, and returns how many.
    /// # Errors
    /// [`BadIndices`], with nothing put.
    pub fn put(&self, from: &[u8]) -> Result<usize, BadIndices> {
        // ORDERING: Acquire, pairs with the consumer's Release advance of `cons` after it copied the bytes out (`take`,
        // or xenstored's barrier): our stores to the slots that it freed come after its loads from them. UNTESTED: see the
        // head of tests/loom_ring.rs, it takes a load that is done after a later store.
        let cons = self.cons.load(Acquire);
        // ORDERING: Relaxed, we are its only writer while connected.
        let prod = self.prod.load(Relaxed);
        let count = from.len().min(self.bytes.len() - self.used(cons, prod)?);
        let mut index = prod;
        for &byte in &from[..count] {
            // ORDERING: Relaxed, published by the Release store of `prod` below.
            self.slot(index).store(byte, Relaxed);
            index = index.wrapping_add(1);
        }
        if count > 0 {
            // ORDERING: Release, pairs with the consumer's Acquire load of `prod` (`take`, or xenstored's read barrier
            // after its load): it sees the bytes. Weakening it fails in tests/loom_ring.rs.
            self.prod.store(index, Release);
        }
        Ok(count)
    }

    /// As the consumer: takes as many bytes as `into` holds and there are, and returns how many.
    /// # Errors
    /// [`BadIndices`], with nothing taken.
    pub fn take(&self, into: &mut [u8]) -> Result<usize, BadIndices> {
        // ORDERING: Acquire, pairs with the producer's Release advance of `prod` after it stored the bytes (`put`, or
        // xenstored's barrier): we see them. Weakening it fails in tests/loom_ring.rs.
        let prod = self.prod.load(Acquire);
        // ORDERING: Relaxed, we are its only writer while connected.
        let cons = self.cons.load(Relaxed);
        let count = into.len().min(self.used(cons, prod)?);
        let mut index = cons;
        for byte in &mut into[..count] {
            // ORDERING: Relaxed, ordered after the Acquire load of `prod` above.
            *byte = self.slot(index).load(Relaxed);
            index = index.wrapping_add(1);
        }
        if count > 0 {
            // ORDERING: Release, pairs with the producer's Acquire load of `cons` (`put`, or xenstored's barrier): our
            // loads from the slots come before its stores to them. UNTESTED: as in `put`.
            self.cons.store(index, Release);
        }
        Ok(count)
    }

    /// True if it is empty at this moment.
    /// # Errors
    /// [`BadIndices`].
    pub fn is_empty(&self) -> Result<bool, BadIndices> {
        // ORDERING: Relaxed, both: no slot is touched on the strength of them.
        let (cons, prod) = (self.cons.load(Relaxed), self.prod.load(Relaxed));
        self.used(cons, prod).map(|used| used == 0)
    }
}

/// The shared page, seen from the guest: producer of requests, consumer of replies.
#[derive(Clone, Copy)]
pub struct Ring<'p> {
    page: &'p XenstoreDomainInterface,
}

impl<'p> Ring<'p> {
    /// A view of `page`. The caller sees to it that nobody else writes requests or consumes replies there.
    #[must_use]
    pub const fn new(page: &'p XenstoreDomainInterface) -> Self {
        Self { page }
    }

    fn requests(&self) -> Half<'p> {
        Half::new(&self.page.req, &self.page.req_cons, &self.page.req_prod)
    }

    fn replies(&self) -> Half<'p> {
        Half::new(&self.page.rsp, &self.page.rsp_cons, &self.page.rsp_prod)
    }

    /// Puts as many of `bytes` as there is room for into the request ring, and returns how many.
    /// # Errors
    /// `RequestIndices`, with nothing written.
    pub fn write(&self, bytes: &[u8]) -> Result<usize, RingFault> {
        self.requests().put(bytes).map_err(request_fault)
    }

    /// Takes as many bytes out of the reply ring as `into` holds and the ring has, and returns how many.
    /// # Errors
    /// `ReplyIndices`, with nothing taken.
    pub fn read(&self, into: &mut [u8]) -> Result<usize, RingFault> {
        self.replies().take(into).map_err(reply_fault)
    }

    /// True if both rings are empty at this moment. Used when quiescing, when nothing new is being asked.
    /// # Errors
    /// Either kind of inconsistent indices.
    pub fn is_empty(&self) -> Result<bool, RingFault> {
        Ok(self.requests().is_empty().map_err(request_fault)? && self.replies().is_empty().map_err(reply_fault)?)
    }

    /// Throws away what is in the reply ring: at a restore it was meant for the domain that we were.
    ///
    /// Whatever was cut off by the suspend goes with it, which matters under oxenstored, where the indices survive and
    /// the other half of the message does not. Nothing of the new xenstored can be lost: it has not been asked anything.
    /// # Errors
    /// `ReplyIndices`, with nothing thrown away.
    pub fn discard_replies(&self) -> Result<(), RingFault> {
        let mut bytes = [0; 64];
        // Bounded by the ring's length, should someone be filling it while we empty it.
        for _ in 0..RING_LEN as usize / bytes.len() {
            if self.read(&mut bytes)? < bytes.len() {
                break;
            }
        }
        Ok(())
    }

    /// False while xenstored is resetting the ring; then nothing of the page may be used.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        // ORDERING: Acquire, pairs with xenstored storing 0 after it has reset the indices: we see them reset.
        // Weakening it fails in tests/loom_connection.rs.
        self.page.connection.load(Acquire) == abi::XENSTORE_CONNECTED
    }

    /// The page's error word: 0, or why xenstored hung up. Survives a restore, so compare with what it was then.
    #[must_use]
    pub fn error(&self) -> u32 {
        // ORDERING: Relaxed, a diagnosis; nothing is read on the strength of it.
        self.page.error.load(Relaxed)
    }
}

fn request_fault(BadIndices { cons, prod }: BadIndices) -> RingFault {
    RingFault::RequestIndices { cons, prod }
}

fn reply_fault(BadIndices { cons, prod }: BadIndices) -> RingFault {
    RingFault::ReplyIndices { cons, prod }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    fn slot(index: u32) -> usize {
        (index % RING_LEN) as usize
    }

    /// A page whose four indices start at `start`.
    fn page(start: u32) -> XenstoreDomainInterface {
        let page = XenstoreDomainInterface::new();
        for index in [&page.req_cons, &page.req_prod, &page.rsp_cons, &page.rsp_prod] {
            index.store(start, Relaxed);
        }
        page
    }

    /// xenstored's part: puts `bytes` into `rsp`, which must have room.
    fn produce(page: &XenstoreDomainInterface, bytes: &[u8]) {
        let mut index = page.rsp_prod.load(Relaxed);
        for &byte in bytes {
            page.rsp[slot(index)].store(byte, Relaxed);
            index = index.wrapping_add(1);
        }
        page.rsp_prod.store(index, Relaxed);
    }

    /// xenstored's part: takes up to `count` bytes out of `req`.
    fn consume(page: &XenstoreDomainInterface, count: usize) -> Vec<u8> {
        let mut index = page.req_cons.load(Relaxed);
        let mut bytes = vec![];
        while bytes.len() < count && index != page.req_prod.load(Relaxed) {
            bytes.push(page.req[slot(index)].load(Relaxed));
            index = index.wrapping_add(1);
        }
        page.req_cons.store(index, Relaxed);
        bytes
    }

    const STARTS: &[u32] = if cfg!(miri) { &[u32::MAX - 5] } else { &[0, 1, 1023, 0x8000_0000, u32::MAX - 5] };

    /// More than a ring, in bytes.
    const LONG: u32 = if cfg!(miri) { 1100 } else { 2500 };

    #[test]
    fn requests_fill_the_ring_and_go_on_when_there_is_room() {
        let message: Vec<u8> = (0..LONG).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
        for &start in STARTS {
            let page = page(start);
            let ring = Ring::new(&page);
            let (mut sent, mut got) = (0, vec![]);
            assert_eq!(ring.write(&message), Ok(1024));
            assert_eq!(ring.write(&message[1024..]), Ok(0));
            sent += 1024;
            while got.len() < message.len() {
                got.extend(consume(&page, 7));
                sent += ring.write(&message[sent..]).expect("indices are sound");
            }
            assert_eq!(got, message);
            assert_eq!(page.req_prod.load(Relaxed), start.wrapping_add(LONG));
        }
    }

    #[test]
    fn replies_come_out_in_order_across_the_wrap() {
        for &start in STARTS {
            let page = page(start);
            let ring = Ring::new(&page);
            let mut buffer = [0; 5];
            for round in 0..LONG / 8 {
                let byte = round.to_le_bytes()[0];
                produce(&page, &[byte, byte ^ 1, byte ^ 2, 3, 4, 5, 6]);
                assert_eq!(ring.read(&mut buffer), Ok(5));
                assert_eq!(buffer, [byte, byte ^ 1, byte ^ 2, 3, 4]);
                assert_eq!(ring.read(&mut buffer), Ok(2));
                assert_eq!(buffer[..2], [5, 6]);
                assert_eq!(ring.read(&mut buffer), Ok(0));
            }
        }
    }

    #[test]
    fn indices_that_claim_too_much_are_named() {
        let page = page(100);
        let ring = Ring::new(&page);
        page.req_cons.store(101, Relaxed);
        assert_eq!(ring.write(b"x"), Err(RingFault::RequestIndices { cons: 101, prod: 100 }));
        assert_eq!(ring.is_empty(), Err(RingFault::RequestIndices { cons: 101, prod: 100 }));
        page.req_cons.store(100, Relaxed);
        page.rsp_prod.store(100 + 1025, Relaxed);
        assert_eq!(ring.read(&mut [0; 8]), Err(RingFault::ReplyIndices { cons: 100, prod: 1125 }));
        assert_eq!(ring.is_empty(), Err(RingFault::ReplyIndices { cons: 100, prod: 1125 }));
        assert_eq!(ring.discard_replies(), Err(RingFault::ReplyIndices { cons: 100, prod: 1125 }));
        // Exactly full is sound.
        page.rsp_prod.store(100 + 1024, Relaxed);
        assert_eq!(ring.read(&mut [0; 8]), Ok(8));
    }

    #[test]
    fn discarding_leaves_an_empty_ring() {
        let page = page(u32::MAX - 3);
        let ring = Ring::new(&page);
        produce(&page, &[9; 1024]);
        assert_eq!(ring.is_empty(), Ok(false));
        assert_eq!(ring.discard_replies(), Ok(()));
        assert_eq!(ring.is_empty(), Ok(true));
    }

    #[test]
    fn only_connection_0_is_connected() {
        let page = page(0);
        let ring = Ring::new(&page);
        assert!(ring.is_connected());
        for not in [abi::XENSTORE_RECONNECT, 2, u32::MAX] {
            page.connection.store(not, Relaxed);
            assert!(!ring.is_connected());
        }
    }
}

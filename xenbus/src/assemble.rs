//! From bytes as they come out of the ring to whole messages, and from whole messages to bytes as there is room.
//!
//! Plain data under the store's lock. A message may be cut at any byte, and a message longer than 4096 bytes must not
//! cost more than its own reply: its header is reported, its payload skipped. Far beyond that the length cannot be
//! meant, the stream is out of step, and there is no way to find the next header. Turned down: one buffer for a header
//! and the longest payload, parsed in place; it would have to be moved or wrapped for every reply.

use crate::error::RingFault;
use crate::wire::{HEADER_LEN, Header, PAYLOAD_MAX};
use alloc::vec::Vec;

/// The longest payload that is skipped rather than taken as a loss of step, in bytes.
const SKIP_MAX: u32 = 64 * 1024;

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A whole message; the payload has `len` bytes, at most 4096.
    Message(Header, Vec<u8>),
    /// A header whose payload is longer than 4096 bytes; it is being skipped.
    TooLong(Header),
}

/// Where we are in the stream.
#[derive(Debug)]
enum State {
    /// `usize` bytes of the header are there.
    Header([u8; HEADER_LEN], usize),
    /// The header and the first bytes of the payload are there.
    Payload(Header, Vec<u8>),
    /// This many bytes are still to be thrown away.
    Skip(u32),
}

/// Puts incoming bytes together.
#[derive(Debug)]
pub struct Assembler {
    state: State,
}

impl Default for Assembler {
    fn default() -> Self {
        Self { state: State::Header([0; HEADER_LEN], 0) }
    }
}

impl Assembler {
    /// True between messages, false inside one.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Header(_, 0))
    }

    /// Takes bytes off the front of `bytes` until a message is complete or none are left.
    /// # Errors
    /// `OutOfStep`; the assembler is then of no use until it is made anew.
    pub fn take(&mut self, bytes: &mut &[u8]) -> Result<Option<Incoming>, RingFault> {
        loop {
            match &mut self.state {
                State::Header(buffer, have) => {
                    let more = split(bytes, HEADER_LEN - *have);
                    buffer[*have..*have + more.len()].copy_from_slice(more);
                    *have += more.len();
                    if *have < HEADER_LEN {
                        return Ok(None);
                    }
                    let header = Header::decode(buffer);
                    if header.len > SKIP_MAX {
                        return Err(RingFault::OutOfStep { len: header.len });
                    }
                    if header.len as usize > PAYLOAD_MAX {
                        self.state = State::Skip(header.len);
                        return Ok(Some(Incoming::TooLong(header)));
                    }
                    self.state = State::Payload(header, Vec::with_capacity(header.len as usize));
                }
                State::Payload(header, payload) => {
                    let header = *header;
                    payload.extend_from_slice(split(bytes, header.len as usize - payload.len()));
                    if payload.len() < header.len as usize {
                        return Ok(None);
                    }
                    let payload = core::mem::take(payload);
                    *self = Self::default();
                    return Ok(Some(Incoming::Message(header, payload)));
                }
                State::Skip(left) => {
                    let gone = split(bytes, *left as usize).len();
                    // `gone` is at most `left`; the default cannot be reached.
                    *left -= u32::try_from(gone).unwrap_or(*left);
                    if *left > 0 {
                        return Ok(None);
                    }
                    *self = Self::default();
                }
            }
        }
    }
}

/// Cuts at most `count` bytes off the front of `bytes`.
fn split<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (front, rest) = bytes.split_at(count.min(bytes.len()));
    *bytes = rest;
    front
}

/// The message that is on its way out.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    /// The message `header` and `payload`, nothing of it sent.
    pub(crate) fn new(header: Header, payload: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(payload);
        Self { bytes, sent: 0 }
    }

    /// What is still to be sent; empty if there is no message.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// `count` bytes of [`Outgoing::rest`] have gone.
    pub(crate) fn advance(&mut self, count: usize) {
        self.sent = self.bytes.len().min(self.sent + count);
    }

    /// True if there is nothing to send.
    pub(crate) fn is_idle(&self) -> bool {
        self.rest().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    /// All that `stream` holds, fed in pieces of `chunk` bytes.
    fn all(stream: &[u8], chunk: usize) -> Result<(Vec<Incoming>, bool), RingFault> {
        let mut assembler = Assembler::default();
        let mut got = vec![];
        for mut piece in stream.chunks(chunk) {
            while let Some(incoming) = assembler.take(&mut piece)? {
                got.push(incoming);
            }
            assert!(piece.is_empty(), "bytes left behind");
        }
        Ok((got, assembler.is_idle()))
    }

    fn message(req_id: u32, len: u32) -> Vec<u8> {
        let mut bytes = Header { kind: 2, req_id, tx_id: 0, len }.encode().to_vec();
        bytes.resize(HEADER_LEN + len as usize, 7);
        bytes
    }

    #[test]
    fn messages_survive_any_cut() {
        let stream = [message(1, 3), message(2, 0), message(3, 40)].concat();
        for chunk in (1..=stream.len()).step_by(if cfg!(miri) { 15 } else { 1 }) {
            let (got, idle) = all(&stream, chunk).expect("in step");
            let lens: Vec<_> = got
                .iter()
                .map(|incoming| match incoming {
                    Incoming::Message(header, payload) => (header.req_id, payload.len()),
                    Incoming::TooLong(_) => panic!("none is too long"),
                })
                .collect();
            assert_eq!((lens, idle), (vec![(1, 3), (2, 0), (3, 40)], true), "chunk {chunk}");
        }
        assert_eq!(all(&stream[..stream.len() - 1], 5).map(|(got, idle)| (got.len(), idle)), Ok((2, false)));
    }

    #[test]
    fn too_long_costs_only_itself() {
        let skipped = if cfg!(miri) { 4100 } else { SKIP_MAX };
        let stream = [message(1, 4097), message(2, 4096), message(3, skipped), message(4, 0)].concat();
        let chunks = if cfg!(miri) { &[4099][..] } else { &[13, 1024, stream.len()] };
        for &chunk in chunks {
            let (got, idle) = all(&stream, chunk).expect("in step");
            assert!(idle);
            assert!(matches!(
                &got[..],
                [
                    Incoming::TooLong(Header { req_id: 1, len: 4097, .. }),
                    Incoming::Message(Header { req_id: 2, .. }, _),
                    Incoming::TooLong(Header { req_id: 3, .. }),
                    Incoming::Message(Header { req_id: 4, .. }, _),
                ]
            ));
        }
    }

    #[test]
    fn a_length_that_cannot_be_meant_is_out_of_step() {
        let header = Header { kind: 2, req_id: 1, tx_id: 0, len: SKIP_MAX + 1 };
        assert_eq!(all(&header.encode(), 3), Err(RingFault::OutOfStep { len: SKIP_MAX + 1 }));
    }

    #[test]
    fn outgoing_goes_in_pieces() {
        let mut outgoing = Outgoing::new(Header { kind: 1, req_id: 2, tx_id: 3, len: 2 }, b"ab");
        assert_eq!(outgoing.rest().len(), 18);
        outgoing.advance(17);
        assert_eq!(outgoing.rest(), b"b");
        outgoing.advance(1);
        assert!(outgoing.is_idle() && Outgoing::default().is_idle());
    }
}

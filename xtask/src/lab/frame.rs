//! The frames on the line between xtask and the agent in the lab's dom0.
//!
//! Owns the wire format: a fixed header (kind, channel, length) and a payload of bytes. Reading and writing
//! block; every value from the other side is checked here. The line is a virtio serial port, which loses
//! nothing and reorders nothing, so there is no checksum and no resynchronisation.
//!
//! Only `std` is used: this file is compiled into xtask and, by itself, into the agent.
//! Turned down: driving dom0's human console, where kernel messages, echo and line ends mix with answers.

use std::io::{self, Read, Write};

/// What a frame means. The channel is the request's number, chosen by xtask; 0 where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// From the agent, once, first: dom0's user space is up. The payload is [`VERSION`].
    Hello = 1,
    /// To the agent: run the payload as a shell script.
    Run = 2,
    /// To the agent: write the payload's bytes into the file of this name; answered with `Done`.
    PutBegin = 3,
    /// To the agent: more bytes of the file begun on this channel.
    PutData = 4,
    /// To the agent: the file is complete.
    PutEnd = 5,
    /// To the agent: stream the console of the domain named by the payload; answered with `Done`.
    Follow = 6,
    /// To the agent: run the payload as a script with its input and output on this channel.
    Attach = 7,
    /// To the agent: bytes for the input of an attached script.
    Input = 8,
    /// To the agent: kill the script of this channel and all its children.
    Kill = 9,
    /// From the agent: output of the script of this channel.
    Output = 10,
    /// From the agent: the request of this channel ended; the payload is the exit code in decimal.
    Done = 11,
    /// From the agent: the request of this channel could not be carried out; the payload says why.
    Failed = 12,
    /// From the agent: console bytes; the payload is domain, 0, log file name, 0, bytes.
    Console = 13,
}

/// The protocol's version. Both sides come from one source tree, so this only guards a stale cache.
pub(crate) const VERSION: &[u8] = b"stasis-lab 1";

/// The largest payload, in bytes. Small enough that a console line never waits long behind a file.
pub(crate) const MAX_PAYLOAD: usize = 32 * 1024;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    /// What it means.
    pub(crate) kind: Kind,
    /// The request it belongs to, or 0.
    pub(crate) channel: u32,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub(crate) payload: Vec<u8>,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Kind; 13] = [
            Kind::Hello,
            Kind::Run,
            Kind::PutBegin,
            Kind::PutData,
            Kind::PutEnd,
            Kind::Follow,
            Kind::Attach,
            Kind::Input,
            Kind::Kill,
            Kind::Output,
            Kind::Done,
            Kind::Failed,
            Kind::Console,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Writes one frame as a single `write`, so that a frame is never interleaved below us.
/// # Errors
/// The line's, or `InvalidInput` for a payload above [`MAX_PAYLOAD`].
pub(crate) fn write(line: &mut impl Write, kind: Kind, channel: u32, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    if payload.len() > MAX_PAYLOAD {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "frame payload too long"));
    }
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.push(kind as u8);
    bytes.extend_from_slice(&channel.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(payload);
    line.write_all(&bytes)?;
    line.flush()
}

/// Reads one frame; `None` at a clean end of the line, which is one between two frames.
/// # Errors
/// The line's, `UnexpectedEof` within a frame, `InvalidData` for an unknown kind or a length above [`MAX_PAYLOAD`].
pub(crate) fn read(line: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut header = [0; HEADER];
    loop {
        match line.read(&mut header[..1]) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    line.read_exact(&mut header[1..])?;
    let [byte, c0, c1, c2, c3, l0, l1, l2, l3] = header;
    let Some(kind) = Kind::from_byte(byte) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("unknown frame kind {byte}")));
    };
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if length > MAX_PAYLOAD {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("frame of {length} bytes")));
    }
    let mut payload = vec![0; length];
    line.read_exact(&mut payload)?;
    Ok(Some(Frame { kind, channel: u32::from_le_bytes([c0, c1, c2, c3]), payload }))
}

/// Kind, channel, length.
const HEADER: usize = 1 + 4 + 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_read_back_in_order() {
        let mut line = Vec::new();
        write(&mut line, Kind::Run, 7, b"xl list").expect("a Vec takes everything");
        write(&mut line, Kind::PutData, 0xdead_beef, &[0xff, 0, b'\n']).expect("a Vec takes everything");
        write(&mut line, Kind::PutEnd, 9, b"").expect("a Vec takes everything");
        let mut from = line.as_slice();
        let mut next = || read(&mut from).expect("well formed");
        assert_eq!(next(), Some(Frame { kind: Kind::Run, channel: 7, payload: b"xl list".to_vec() }));
        assert_eq!(next(), Some(Frame { kind: Kind::PutData, channel: 0xdead_beef, payload: vec![0xff, 0, b'\n'] }));
        assert_eq!(next(), Some(Frame { kind: Kind::PutEnd, channel: 9, payload: vec![] }));
        assert_eq!(next(), None);
    }

    #[test]
    fn every_kind_survives_the_line() {
        for byte in 1..=13 {
            let kind = Kind::from_byte(byte).expect("1 to 13 are all taken");
            assert_eq!(kind as u8, byte);
        }
        assert_eq!(Kind::from_byte(0), None);
        assert_eq!(Kind::from_byte(14), None);
    }

    #[test]
    fn broken_input_is_an_error_and_not_a_hang_or_a_huge_allocation() {
        let mut good = Vec::new();
        write(&mut good, Kind::Done, 1, b"0").expect("a Vec takes everything");
        for cut in 1..good.len() {
            let error = read(&mut &good[..cut]).expect_err("cut inside a frame");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
        let mut unknown = good.clone();
        unknown[0] = 77;
        assert_eq!(read(&mut unknown.as_slice()).expect_err("unknown kind").kind(), io::ErrorKind::InvalidData);
        let mut huge = good;
        huge[5..9].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(read(&mut huge.as_slice()).expect_err("huge length").kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_payload_above_the_limit_is_refused_before_it_is_sent() {
        let mut line = Vec::new();
        let error = write(&mut line, Kind::PutData, 1, &vec![0; MAX_PAYLOAD + 1]).expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(line.is_empty());
    }
}

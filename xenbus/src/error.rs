//! Everything that can go wrong between a caller and xenstored, by name.
//!
//! Pure values. xenstored names its errors ("EAGAIN"); those that the header lists become Xen's numbers, and a name that
//! it does not list (oxenstored says EQUOTA) is kept as text. Turned down: one number for all unlisted names, which
//! would say nothing to who has to find out.

use crate::wire::Kind;
use alloc::string::String;
use core::fmt;
use xen_sys::Errno;

/// A short copy of text from outside: at most [`Text::MAX`] bytes, shown with everything unprintable escaped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Text {
    bytes: [u8; Text::MAX],
    len: usize,
    cut: bool,
}

impl Text {
    /// The most bytes that are kept.
    pub const MAX: usize = 48;

    /// Keeps the first [`Text::MAX`] bytes of `from`.
    #[must_use]
    pub fn new(from: &[u8]) -> Self {
        let len = from.len().min(Self::MAX);
        let mut bytes = [0; Self::MAX];
        bytes[..len].copy_from_slice(&from[..len]);
        Self { bytes, len, cut: from.len() > len }
    }

    /// What was kept.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_bytes().escape_ascii())?;
        if self.cut { f.write_str("...") } else { Ok(()) }
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// What the payload of an error reply names; a NUL at its end does not count.
pub(crate) fn named(payload: &[u8]) -> Cause {
    let name = payload.strip_suffix(b"\0").unwrap_or(payload);
    Errno::from_name(name).map_or_else(|| Cause::Unlisted(Text::new(name)), Cause::Xen)
}

/// A request that we do not even send, because xenstored would refuse it or hang up on us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A path without a byte.
    Empty,
    /// A NUL inside, which would shift the message's fields.
    Nul,
    /// A path longer than xenstored takes, or a payload beyond 4096 bytes, after which it would stop serving us.
    TooLong {
        /// What it would have been, in bytes.
        len: usize,
    },
    /// A key under `data/stasis` with characters other than `a-z 0-9 _ -`.
    BadKey,
    /// Watches or transactions are in use, and this would take them away.
    InUse,
}

/// The connection cannot be used any more. Only a restore (`Resumed`) brings a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingFault {
    /// More than 1024 bytes claimed to be in the request ring.
    RequestIndices {
        /// `req_cons` as read.
        cons: u32,
        /// `req_prod` as read.
        prod: u32,
    },
    /// More than 1024 bytes claimed to be in the reply ring.
    ReplyIndices {
        /// `rsp_cons` as read.
        cons: u32,
        /// `rsp_prod` as read.
        prod: u32,
    },
    /// A message header that claims a length so far out of range that the stream must be out of step.
    OutOfStep {
        /// The claimed length in bytes.
        len: u32,
    },
    /// xenstored has hung up and left this in the page's `error` word (`XENSTORE_ERROR_*`).
    HungUp {
        /// The word as read.
        error: u32,
    },
}

impl fmt::Display for RingFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RequestIndices { cons, prod } => write!(f, "request ring indices cons={cons} prod={prod}"),
            Self::ReplyIndices { cons, prod } => write!(f, "reply ring indices cons={cons} prod={prod}"),
            Self::OutOfStep { len } => write!(f, "message header out of step, len={len}"),
            Self::HungUp { error } => write!(f, "xenstored hung up, error={error}"),
        }
    }
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// xenstored's own answer, by a name that the header lists.
    Xen(Errno),
    /// xenstored's own answer, by a name that it does not.
    Unlisted(Text),
    /// Not sent.
    Refused(Refusal),
    /// The reply does not have the shape that it must have.
    Malformed(&'static str),
    /// The reply was longer than a message may be, and was thrown away.
    TooLong {
        /// Its length in bytes, as claimed.
        len: u32,
    },
    /// The reply carries our request's id but the type of another operation.
    WrongType {
        /// The type it carries.
        kind: u32,
    },
    /// The ring is broken.
    RingBroken(RingFault),
    /// The transaction conflicted with others in every one of `tries` attempts.
    Conflict {
        /// Attempts made.
        tries: u32,
    },
    /// The transaction was of a connection that is no more.
    Lost,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xen(errno) => write!(f, "{errno}"),
            Self::Unlisted(name) => write!(f, "{name}"),
            Self::Refused(Refusal::Empty) => f.write_str("not sent: empty"),
            Self::Refused(Refusal::Nul) => f.write_str("not sent: NUL inside"),
            Self::Refused(Refusal::TooLong { len }) => write!(f, "not sent: {len} bytes are too long"),
            Self::Refused(Refusal::BadKey) => f.write_str("not sent: a key is made of a-z, 0-9, _ and -"),
            Self::Refused(Refusal::InUse) => f.write_str("not sent: watches or transactions are in use"),
            Self::Malformed(what) => write!(f, "malformed reply: {what}"),
            Self::TooLong { len } => write!(f, "reply of {len} bytes is too long"),
            Self::WrongType { kind } => write!(f, "reply of type {kind}"),
            Self::RingBroken(fault) => write!(f, "xenstore ring broken: {fault}"),
            Self::Conflict { tries } => write!(f, "conflicts in {tries} attempts"),
            Self::Lost => f.write_str("transaction lost with its connection"),
        }
    }
}

/// An operation on xenstore that failed: which, on what, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError {
    /// The operation.
    pub op: Kind,
    /// Its path, or whatever it was about; may be empty.
    pub object: String,
    /// Why it failed.
    pub cause: Cause,
}

impl StoreError {
    /// True if this is xenstored's answer `errno`.
    #[must_use]
    pub fn is(&self, errno: Errno) -> bool {
        self.cause == Cause::Xen(errno)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "xenstore {} {}: {}", self.op.name(), self.object.as_bytes().escape_ascii(), self.cause)
    }
}

impl core::error::Error for StoreError {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn listed_names_become_numbers_with_and_without_nul() {
        assert_eq!(named(b"EAGAIN\0"), Cause::Xen(Errno::EAGAIN));
        assert_eq!(named(b"E2BIG"), Cause::Xen(Errno::E2BIG));
        assert_eq!(format!("{}", named(b"ENOTEMPTY\0")), "ENOTEMPTY (39)");
    }

    #[test]
    fn unlisted_names_are_kept_as_text() {
        assert_eq!(format!("{}", named(b"EQUOTA\0")), "EQUOTA");
        assert_eq!(named(b""), Cause::Unlisted(Text::new(b"")));
        // Not a prefix match, and not fooled by a second NUL.
        assert_eq!(named(b"ENOENTX\0"), Cause::Unlisted(Text::new(b"ENOENTX")));
        assert_eq!(named(b"ENOENT\0\0"), Cause::Unlisted(Text::new(b"ENOENT\0")));
    }

    #[test]
    fn text_is_bounded_and_escaped() {
        let text = Text::new(&[b'x'; 4096]);
        assert_eq!(text.as_bytes().len(), Text::MAX);
        assert!(format!("{text}").ends_with("x..."));
        assert_eq!(format!("{:?}", Text::new(b"a\"\n\xff")), r#""a\"\n\xff""#);
    }

    #[test]
    fn errors_say_operation_object_and_cause() {
        let error = StoreError { op: Kind::Read, object: "data/x".into(), cause: named(b"EQUOTA") };
        assert_eq!(format!("{error}"), "xenstore read data/x: EQUOTA");
        assert!(!error.is(Errno::ENOENT));
        assert!(StoreError { cause: named(b"ENOENT"), ..error }.is(Errno::ENOENT));
    }
}

//! The shape of xenstore messages: header, types, and how paths and values are laid out in a payload.
//!
//! Pure functions on bytes; nothing here knows of rings or tasks. The rules for NULs are xenstored's: a path in a
//! request ends in one, the value of a WRITE and the answer to a READ do not. Turned down: a type per request with
//! its own encoder. All requests are a list of pieces, and one function that checks the sum of their lengths against
//! the limit is easier to trust than sixteen.

use crate::error::{Cause, Refusal};
use alloc::string::String;
use alloc::vec::Vec;
use xen_sys::abi::io::xs_wire as abi;

/// The longest payload in either direction, in bytes.
pub const PAYLOAD_MAX: usize = abi::XENSTORE_PAYLOAD_MAX as usize;
/// The bytes of a message header.
pub const HEADER_LEN: usize = 16;
const _: () = assert!(size_of::<abi::XsdSockmsg>() == HEADER_LEN);

/// The longest absolute path, in bytes without the NUL.
const ABS_PATH_MAX: usize = abi::XENSTORE_ABS_PATH_MAX as usize;
/// The longest relative path, in bytes without the NUL.
const REL_PATH_MAX: usize = abi::XENSTORE_REL_PATH_MAX as usize;

/// Defines the operations we use once: variant, Xen's number, name in messages.
macro_rules! kinds {
    ($($variant:ident = $raw:ident, $name:literal;)*) => {
        /// The operations that we use, as Xen numbers them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Kind {
            $(#[doc = $name] $variant = abi::$raw,)*
        }

        impl Kind {
            /// The operation's name in messages.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Xen's number for it.
            #[must_use]
            pub const fn raw(self) -> u32 {
                self as u32
            }

            /// The operation with Xen's number `raw`, if it is one of ours. For the fake: we never ask this of a
            /// reply, whose type is compared with its request's.
            #[cfg(any(test, feature = "fake"))]
            #[must_use]
            pub const fn from_raw(raw: u32) -> Option<Self> {
                match raw {
                    $(abi::$raw => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    Directory = XS_DIRECTORY, "directory";
    Read = XS_READ, "read";
    Watch = XS_WATCH, "watch";
    Unwatch = XS_UNWATCH, "unwatch";
    TransactionStart = XS_TRANSACTION_START, "transaction-start";
    TransactionEnd = XS_TRANSACTION_END, "transaction-end";
    GetDomainPath = XS_GET_DOMAIN_PATH, "get-domain-path";
    Write = XS_WRITE, "write";
    Mkdir = XS_MKDIR, "mkdir";
    Rm = XS_RM, "rm";
    WatchEvent = XS_WATCH_EVENT, "watch-event";
    Error = XS_ERROR, "error";
    ResetWatches = XS_RESET_WATCHES, "reset-watches";
    DirectoryPart = XS_DIRECTORY_PART, "directory-part";
}

/// A message header. `kind` is raw: what comes from outside may be any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// `XS_*`.
    pub kind: u32,
    /// Chosen by us, echoed in the reply; 0 in watch events.
    pub req_id: u32,
    /// The transaction, 0 for none.
    pub tx_id: u32,
    /// Payload bytes that follow.
    pub len: u32,
}

impl Header {
    /// As it goes over the ring.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        for (slot, word) in bytes.chunks_exact_mut(4).zip([self.kind, self.req_id, self.tx_id, self.len]) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The opposite of [`Header::encode`]. Any bytes are a header; its values are for the caller to check.
    #[must_use]
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Self {
        let word = |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        Self { kind: word(0), req_id: word(4), tx_id: word(8), len: word(12) }
    }
}

/// Puts the pieces of a request's payload one after the other.
/// # Errors
/// `TooLong` beyond [`PAYLOAD_MAX`]: xenstored would stop serving this domain.
pub fn payload(pieces: &[&[u8]]) -> Result<Vec<u8>, Refusal> {
    let len = pieces.iter().map(|piece| piece.len()).sum();
    if len > PAYLOAD_MAX {
        return Err(Refusal::TooLong { len });
    }
    let mut bytes = Vec::with_capacity(len);
    for piece in pieces {
        bytes.extend_from_slice(piece);
    }
    Ok(bytes)
}

/// Checks what can break the message or our connection. Which characters a path may have is xenstored's to say.
/// # Errors
/// `Empty`, `Nul`, or `TooLong` beyond 3072 bytes (absolute) or 2048 (relative).
pub fn check_path(path: &str) -> Result<(), Refusal> {
    let len = path.len();
    let max = if path.starts_with('/') { ABS_PATH_MAX } else { REL_PATH_MAX };
    if len == 0 {
        Err(Refusal::Empty)
    } else if path.contains('\0') {
        Err(Refusal::Nul)
    } else if len > max {
        Err(Refusal::TooLong { len })
    } else {
        Ok(())
    }
}

/// One string of a reply, where xenstored ends some with a NUL and others not.
/// # Errors
/// `Malformed` if it has a NUL inside or is not UTF-8.
pub fn one_string(mut bytes: Vec<u8>) -> Result<String, Cause> {
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    if bytes.contains(&0) {
        return Err(Cause::Malformed("NUL inside"));
    }
    String::from_utf8(bytes).map_err(|_| Cause::Malformed("not UTF-8"))
}

/// The id in the reply to TRANSACTION_START.
/// # Errors
/// `Malformed` unless it is a decimal number other than 0, which means "no transaction".
pub fn transaction_id(bytes: &[u8]) -> Result<u32, Cause> {
    let digits = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    crate::data::parse_u64(digits)
        .ok()
        .and_then(|id| u32::try_from(id).ok())
        .filter(|&id| id != 0)
        .ok_or(Cause::Malformed("transaction id"))
}

/// The names in the reply to DIRECTORY: each ends in a NUL, none is empty.
/// # Errors
/// `Malformed` otherwise, or if a name is not UTF-8 or holds a `/`.
pub fn names(bytes: &[u8], into: &mut Vec<String>) -> Result<(), Cause> {
    let Some(list) = bytes.strip_suffix(b"\0") else {
        return if bytes.is_empty() { Ok(()) } else { Err(Cause::Malformed("list without a NUL at its end")) };
    };
    for name in list.split(|&byte| byte == 0) {
        let name = str::from_utf8(name).map_err(|_| Cause::Malformed("not UTF-8"))?;
        if name.is_empty() || name.contains('/') {
            return Err(Cause::Malformed("name in a list"));
        }
        into.push(name.into());
    }
    Ok(())
}

/// A reply to DIRECTORY_PART, split: `generation NUL (name NUL)* [NUL]`, where the NUL at the end says "no more".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// Changes when the node does; then the parts read before are worth nothing.
    pub generation: &'a [u8],
    /// The names, for [`names`]; its length is what the next offset grows by.
    pub list: &'a [u8],
    /// True if these were the last.
    pub last: bool,
}

/// Splits a reply to DIRECTORY_PART.
/// # Errors
/// `Malformed` if there is no generation, or if the part is neither the last nor brings anything.
pub fn part(bytes: &[u8]) -> Result<Part<'_>, Cause> {
    let end = bytes.iter().position(|&byte| byte == 0).ok_or(Cause::Malformed("part without a generation"))?;
    let (generation, rest) = (&bytes[..end], &bytes[end + 1..]);
    let (list, last) = match rest {
        [0] => (&rest[..0], true),
        [list @ .., 0] if list.last() == Some(&0) => (list, true),
        _ => (rest, false),
    };
    if generation.is_empty() || (list.is_empty() && !last) {
        return Err(Cause::Malformed("part of a list"));
    }
    Ok(Part { generation, list, last })
}

/// Path and token of a watch event.
#[must_use]
pub fn event(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let fields = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    let mut fields = fields.split(|&byte| byte == 0);
    // A third field would be from a newer protocol; the first two keep their meaning.
    Some((fields.next()?, fields.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;

    #[test]
    fn header_is_four_little_endian_words() {
        let header = Header { kind: 2, req_id: 0x0102_0304, tx_id: 0, len: 9 };
        assert_eq!(header.encode(), [2, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0, 9, 0, 0, 0]);
        assert_eq!(Header::decode(&header.encode()), header);
    }

    #[test]
    fn kinds_convert_both_ways() {
        assert_eq!(Kind::from_raw(Kind::Write.raw()), Some(Kind::Write));
        assert_eq!(Kind::from_raw(15), Some(Kind::WatchEvent));
        assert_eq!(Kind::from_raw(16), Some(Kind::Error));
        assert_eq!(Kind::from_raw(0xffff), None);
    }

    #[test]
    fn payload_may_be_4096_bytes_and_no_more() {
        assert_eq!(payload(&[b"a\0", &[7; 4094]]).map(|bytes| bytes.len()), Ok(4096));
        assert_eq!(payload(&[b"a\0", &[7; 4095]]), Err(Refusal::TooLong { len: 4097 }));
    }

    #[test]
    fn paths_are_checked() {
        assert_eq!(check_path(""), Err(Refusal::Empty));
        assert_eq!(check_path("a\0b"), Err(Refusal::Nul));
        assert_eq!(check_path(&"a".repeat(2048)), Ok(()));
        assert_eq!(check_path(&"a".repeat(2049)), Err(Refusal::TooLong { len: 2049 }));
        assert_eq!(check_path(&("/".to_string() + &"a".repeat(3071))), Ok(()));
        assert_eq!(check_path(&("/".to_string() + &"a".repeat(3072))), Err(Refusal::TooLong { len: 3073 }));
    }

    #[test]
    fn strings_lose_one_nul_at_most() {
        assert_eq!(one_string(b"/local/domain/3\0".to_vec()), Ok("/local/domain/3".into()));
        assert_eq!(one_string(b"value".to_vec()), Ok("value".into()));
        assert_eq!(one_string(vec![]), Ok(String::new()));
        assert!(one_string(b"a\0b".to_vec()).is_err());
        assert!(one_string(vec![0xff]).is_err());
    }

    #[test]
    fn transaction_ids_are_strict() {
        assert_eq!(transaction_id(b"17\0"), Ok(17));
        assert_eq!(transaction_id(b"4294967295"), Ok(u32::MAX));
        for bad in [&b""[..], b"0\0", b"4294967296\0", b"-1\0", b"x\0", b"1 \0", b"1\0\0"] {
            assert!(transaction_id(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn lists_of_names() {
        let mut got = vec![];
        assert_eq!(names(b"", &mut got), Ok(()));
        assert_eq!(names(b"a\0bc\0", &mut got), Ok(()));
        assert_eq!(got, ["a", "bc"]);
        for bad in [&b"a"[..], b"\0", b"a\0\0", b"a/b\0", b"\xff\0"] {
            assert!(names(bad, &mut got).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn parts_of_lists() {
        let of = |generation, list, last| Ok(Part { generation, list, last });
        assert_eq!(part(b"12\0a\0b\0"), of(&b"12"[..], &b"a\0b\0"[..], false));
        assert_eq!(part(b"12\0a\0\0"), of(&b"12"[..], &b"a\0"[..], true));
        assert_eq!(part(b"12\0\0"), of(&b"12"[..], &b""[..], true));
        for bad in [&b""[..], b"12", b"12\0", b"\0a\0"] {
            assert!(part(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn events_have_path_and_token() {
        assert_eq!(event(b"control/shutdown\0t\0"), Some((&b"control/shutdown"[..], &b"t"[..])));
        assert_eq!(event(b"p\0\0"), Some((&b"p"[..], &b""[..])));
        assert_eq!(event(b"p\0"), None);
        assert_eq!(event(b""), None);
    }
}

//! What a store counts, and the names of what fits nothing.
//!
//! Plain data, written under the store's lock and handed out as a copy. Turned down: one counter per kind of oddity. What
//! one wants to know is whether there were any, and then what exactly the last one was.

use crate::error::Text;
use crate::wire::Kind;
use core::fmt;

/// An answer that fits nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oddity {
    /// A reply to no request of ours: never made, or answered before.
    UnknownId {
        /// Its type.
        kind: u32,
        /// Its id.
        req_id: u32,
    },
    /// A reply of another type than its request.
    WrongType {
        /// The request's type.
        asked: Kind,
        /// The reply's type.
        kind: u32,
    },
    /// A payload of more than 4096 bytes.
    TooLong {
        /// The message's type.
        kind: u32,
        /// Its length in bytes.
        len: u32,
    },
    /// A watch event without path and token.
    MalformedEvent(Text),
}

impl fmt::Display for Oddity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownId { kind, req_id } => write!(f, "reply of type {kind} to unknown request {req_id}"),
            Self::WrongType { asked, kind } => write!(f, "reply of type {kind} to {}", asked.name()),
            Self::TooLong { kind, len } => write!(f, "message of type {kind} with {len} bytes"),
            Self::MalformedEvent(text) => write!(f, "malformed watch event {text:?}"),
        }
    }
}

/// Statistics of a store. Kept across a restore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests sent.
    pub requests: u64,
    /// Replies that found their request.
    pub replies: u64,
    /// Watch events that found their watch.
    pub events: u64,
    /// Watch events for no watch of ours; normal shortly after an unwatch.
    pub events_stray: u64,
    /// Answers that fit nothing.
    pub oddities: u64,
    /// The last of them.
    pub last_oddity: Option<Oddity>,
    /// Times that the ring was found broken.
    pub faults: u64,
}

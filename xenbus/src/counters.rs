//! What a store counts, and the names of what fits nothing.
//!
//! Plain data, written under the store's lock and handed out as a copy, for whoever dumps the kernel's state. Turned down: one counter per kind of oddity. What
//! one wants to know is whether there were any, and then what exactly the last one was.

use crate::error::{RingFault, Text};
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
    /// A request that was never answered, and was forgotten: too many others came after it.
    Unanswered {
        /// Its type.
        asked: Kind,
    },
}

impl fmt::Display for Oddity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownId { kind, req_id } => write!(f, "reply of type {kind} to unknown request {req_id}"),
            Self::WrongType { asked, kind } => write!(f, "reply of type {kind} to {}", asked.name()),
            Self::TooLong { kind, len } => write!(f, "message of type {kind} with {len} bytes"),
            Self::MalformedEvent(text) => write!(f, "malformed watch event {text:?}"),
            Self::Unanswered { asked } => write!(f, "no reply to {}", asked.name()),
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

/// A store at one moment, for a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// Statistics so far.
    pub counters: Counters,
    /// Requests on their way that somebody waits for.
    pub awaited: usize,
    /// Requests on their way that nobody waits for any more. That some stay is what an answer lost by xenstored looks like.
    pub late: usize,
    /// What broke the ring, if anything did.
    pub fault: Option<RingFault>,
}

/// The numbers as `key=value`, and what went wrong last in words, if anything did.
impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counters { requests, replies, events, events_stray, oddities, last_oddity, faults } = self.counters;
        let Self { awaited, late, .. } = self;
        write!(f, "requests={requests} replies={replies} awaited={awaited} late={late} ")?;
        write!(f, "events={events} events_stray={events_stray} oddities={oddities} faults={faults}")?;
        if let Some(oddity) = last_oddity {
            write!(f, " last_oddity={}", Quoted(&oddity))?;
        }
        if let Some(fault) = self.fault {
            write!(f, " fault={}", Quoted(&fault))?;
        }
        Ok(())
    }
}

/// Words between quotes. Those of this crate hold no newline; what comes from outside is escaped already ([`Text`]).
struct Quoted<'a>(&'a dyn fmt::Display);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escaped<'a, 'f>(&'a mut fmt::Formatter<'f>);
        impl fmt::Write for Escaped<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                for part in text.split_inclusive(['"', '\\']) {
                    let (plain, special) = part.split_at(part.trim_end_matches(['"', '\\']).len());
                    self.0.write_str(plain)?;
                    if !special.is_empty() {
                        write!(self.0, "\\{special}")?;
                    }
                }
                Ok(())
            }
        }
        f.write_str("\"")?;
        fmt::write(&mut Escaped(f), format_args!("{}", self.0))?;
        f.write_str("\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_diagnosis_is_fields_of_one_line() {
        let mut diagnosis = Diagnosis { counters: Counters::default(), awaited: 1, late: 2, fault: None };
        let numbers = "requests=0 replies=0 awaited=1 late=2 events=0 events_stray=0 oddities=0 faults=0";
        assert_eq!(diagnosis.to_string(), numbers);
        diagnosis.counters.last_oddity = Some(Oddity::MalformedEvent(Text::new(b"a\"\n\\")));
        diagnosis.fault = Some(RingFault::HungUp { error: 3 });
        let words = r#" last_oddity="malformed watch event \"a\\\"\\n\\\\\"" fault="xenstored hung up, error=3""#;
        assert_eq!(diagnosis.to_string(), [numbers, words].concat());
    }
}

//! `control/shutdown`: how the toolstack asks a domain to end, to restart, or to suspend.
//!
//! Logic over the client, for one task. The toolstack writes a word and waits 60 s for any other value; it takes an
//! unanswered request back in a transaction of its own. So we take it in a transaction too: either we saw it and it is
//! answered, exactly once, or it was withdrawn and we never saw it. Turned down: read, then write; between the two
//! a withdrawal, or a second request, would be answered unseen.
//!
//! Source: xen/docs/misc/xenstore-paths.pandoc, tools/libs/light/libxl_domain.c (libxl__domain_pvcontrol).

use crate::error::{StoreError, Text};
use crate::store::Store;
use crate::take::{take, take_at_once};
use core::fmt;

/// The node, relative to the domain's home. Watch it, and call [`take_request`] at every change, or [`take_request_at_once`] where it is another's.
pub const NODE: &str = "control/shutdown";

/// The nodes by which we say what we take; a restore clears them.
const FEATURES: [&str; 3] = ["control/feature-poweroff", "control/feature-reboot", "control/feature-suspend"];

/// What the toolstack asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Request {
    /// End.
    Poweroff,
    /// End as for [`Request::Poweroff`]; the word is kept for the console.
    Halt,
    /// End, and be started again.
    Reboot,
    /// Suspend.
    Suspend,
    /// Something that we do not know; it has been acknowledged, and is to be named.
    Unknown(Text),
}

impl Request {
    /// Reads a value of the node; `None` is idle. Words are taken exactly: no spaces, no other case.
    pub fn parse(value: &[u8]) -> Option<Self> {
        Some(match value {
            b"" => return None,
            b"poweroff" => Self::Poweroff,
            b"halt" => Self::Halt,
            b"reboot" => Self::Reboot,
            b"suspend" => Self::Suspend,
            other => Self::Unknown(Text::new(other)),
        })
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Poweroff => f.write_str("poweroff"),
            Self::Halt => f.write_str("halt"),
            Self::Reboot => f.write_str("reboot"),
            Self::Suspend => f.write_str("suspend"),
            Self::Unknown(text) => write!(f, "{text}"),
        }
    }
}

/// Takes the request that stands at the node, if any, and acknowledges it. `None` if there is none, or it was withdrawn
/// while we looked.
///
/// `foresee` is shown what most likely will be taken, at the first of the two times that this goes to xenstored and back. It may be shown nothing, and what is shown may have been withdrawn or replaced before it is taken.
/// # Errors
/// As for a transaction. The request is then not acknowledged, and stands there for the next time; except that, if there
/// is no answer to the commit or none that makes sense (`RingBroken`, `TooLong`, `WrongType`), nobody knows, and if none to the
/// read that makes sense, it has been acknowledged. The same holds if the future is dropped during the commit.
pub async fn take_request(store: &Store, foresee: impl FnOnce(&Request)) -> Result<Option<Request>, StoreError> {
    take(store, NODE, Request::parse, foresee).await
}

/// The same, sooner by half: for when somebody else is known to have written to the node since it was taken from last. `None`: it did not
/// come off; use [`take_request`]. `begun` is called when it is tried; the node may have been written to then, which its watch tells of.
/// # Errors
/// As for a transaction. If the read is refused, the request is gone; if the commit fails otherwise than by a conflict, nobody knows.
pub async fn take_request_at_once(store: &Store, begun: impl FnOnce()) -> Option<Result<Option<Request>, StoreError>> {
    take_at_once(store, NODE, Request::parse, begun).await
}

/// Says which requests we take. Again after every restore.
/// # Errors
/// As for a write; those before the failing one are written.
pub async fn advertise(store: &Store) -> Result<(), StoreError> {
    for node in FEATURES {
        store.write(node, "1").await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use xen_sys::Errno;

    use super::*;
    use crate::error::Cause;
    use crate::fake::{self, Twist, block_on, settle};
    use alloc::format;

    #[test]
    fn words_are_taken_exactly() {
        assert_eq!(Request::parse(b""), None);
        assert_eq!(Request::parse(b"poweroff"), Some(Request::Poweroff));
        assert_eq!(Request::parse(b"halt"), Some(Request::Halt));
        assert_eq!(Request::parse(b"reboot"), Some(Request::Reboot));
        assert_eq!(Request::parse(b"suspend"), Some(Request::Suspend));
        for odd in [&b"Suspend"[..], b"suspend\n", b" ", b"\0", b"crash", b"\xff\xfe"] {
            assert_eq!(Request::parse(odd), Some(Request::Unknown(Text::new(odd))), "{odd:?}");
        }
        assert_eq!(format!("{}", Request::Unknown(Text::new(b"a\n\xff"))), "a\\n\\xff");
    }

    #[test]
    fn every_word_is_acknowledged_once() {
        let (store, mut fake) = fake::pair(0);
        assert_eq!(block_on(&store, &mut fake, take_request(&store, |_| ())), Ok(None), "no node");
        for word in [&b"suspend"[..], b"poweroff", b"garbage", b"\xff", &[b'x'; 2000]] {
            fake.set(NODE, word);
            assert_eq!(block_on(&store, &mut fake, take_request(&store, |_| ())), Ok(Request::parse(word)));
            assert_eq!(fake.value(NODE), Some(&b""[..]));
            assert_eq!(block_on(&store, &mut fake, take_request(&store, |_| ())), Ok(None), "taken already");
        }
    }

    #[test]
    fn a_request_withdrawn_meanwhile_is_none() {
        let (store, mut fake) = fake::pair(0);
        fake.set(NODE, b"suspend");
        fake.intruders.push_back((NODE.into(), b"".to_vec()));
        let commits = fake.commits();
        let mut foreseen = None;
        assert_eq!(block_on(&store, &mut fake, take_request(&store, |request| foreseen = Some(*request))), Ok(None));
        assert_eq!(foreseen, Some(Request::Suspend));
        assert_eq!(fake.commits() - commits, 1, "the first one meets the withdrawal");
        assert_eq!(fake.value(NODE), Some(&b""[..]));
    }

    #[test]
    fn a_request_that_changes_meanwhile_is_taken_as_it_stands() {
        let (store, mut fake) = fake::pair(0);
        fake.set(NODE, b"suspend");
        fake.intruders.push_back((NODE.into(), b"reboot".to_vec()));
        let mut foreseen = None;
        assert_eq!(
            block_on(&store, &mut fake, take_request(&store, |request| foreseen = Some(*request))),
            Ok(Some(Request::Reboot))
        );
        assert_eq!(foreseen, Some(Request::Suspend));
        assert_eq!(fake.value(NODE), Some(&b""[..]));
    }

    #[test]
    fn an_error_leaves_the_request_for_the_next_time() {
        let (store, mut fake) = fake::pair(0);
        fake.set(NODE, b"suspend");
        // The look, the start, the read.
        fake.twists.extend([Twist::Honest, Twist::Honest, Twist::Honest, Twist::Error("EACCES")]);
        let error = block_on(&store, &mut fake, take_request(&store, |_| ())).expect_err("the write is refused");
        assert!(matches!(error.cause, Cause::Xen(Errno::EACCES)));
        settle(&store, &mut fake);
        assert_eq!(fake.value(NODE), Some(&b"suspend"[..]));
        assert_eq!(fake.open_transactions(), 0);
        assert_eq!(block_on(&store, &mut fake, take_request(&store, |_| ())), Ok(Some(Request::Suspend)));
    }

    #[test]
    fn features_are_said() {
        let (store, mut fake) = fake::pair(0);
        assert_eq!(block_on(&store, &mut fake, advertise(&store)), Ok(()));
        for node in FEATURES {
            assert_eq!(fake.value(node), Some(&b"1"[..]));
        }
    }
}

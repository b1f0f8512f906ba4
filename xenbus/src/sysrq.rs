//! `control/sysrq`: one letter, by which people ask a domain to show something.
//!
//! Logic over the client, for one task. `xl sysrq` writes the letter, as one byte and outside of a transaction, waits for
//! nothing, and says nothing if it could not: so a letter that is written before the last one was read replaces it. libxl makes
//! the node, empty and writable for the domain; older ones left that to `xl sysrq`, and the domain could not clear it. Taken
//! in a transaction, for the reason that `shutdown` has: what is answered is what was read, once.
//!
//! Source: tools/libs/light/libxl_domain.c (libxl_send_sysrq), libxl_create.c (libxl__domain_make).
#![forbid(unsafe_code)]

use crate::error::{StoreError, Text};
use crate::store::Store;
use crate::take::take;

/// The node, relative to the domain's home. Watch it, and call [`take_key`] at every change.
pub const NODE: &str = "control/sysrq";

/// What stood at the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Key {
    /// A letter, or another visible ASCII character.
    Letter(char),
    /// Something else; it has been cleared, and is to be named.
    Odd(Text),
}

impl Key {
    /// Reads a value of the node; `None` is idle.
    pub fn parse(value: &[u8]) -> Option<Self> {
        Some(match value {
            b"" => return None,
            [letter] if letter.is_ascii_graphic() => Self::Letter(char::from(*letter)),
            other => Self::Odd(Text::new(other)),
        })
    }
}

/// Takes the key that stands at the node, if any, and clears the node.
/// # Errors
/// As for a transaction, `EACCES` also where the node is not ours to write. The key has then not been taken, and stands there
/// still; except as [`take_request`](crate::shutdown::take_request) says.
pub async fn take_key(store: &Store) -> Result<Option<Key>, StoreError> {
    take(store, NODE, Key::parse, |_| ()).await
}

#[cfg(test)]
mod tests {
    use xen_sys::Errno;

    use super::*;
    use crate::error::Cause;
    use crate::fake::{self, Twist, block_on, settle};
    use crate::scope::TRIES_MAX;
    use crate::wire::Kind;

    #[test]
    fn letters_are_one_byte() {
        assert_eq!(Key::parse(b""), None);
        for letter in ['e', 'E', 'w', '0', '~'] {
            assert_eq!(Key::parse(letter.encode_utf8(&mut [0; 4]).as_bytes()), Some(Key::Letter(letter)));
        }
        for odd in [&b" "[..], b"\0", b"\n", b"ew", b"e\n", b"\x7f", b"\xff", "\u{e4}".as_bytes()] {
            assert_eq!(Key::parse(odd), Some(Key::Odd(Text::new(odd))), "{odd:?}");
        }
    }

    #[test]
    fn without_a_node_there_is_no_key_and_no_node_is_made() {
        let (store, mut fake) = fake::pair(0);
        assert_eq!(block_on(&store, &mut fake, take_key(&store)), Ok(None));
        assert_eq!(fake.value(NODE), None);
        fake.set(NODE, b"");
        assert_eq!(block_on(&store, &mut fake, take_key(&store)), Ok(None), "empty");
        assert!(!fake.log().contains(&Kind::Write), "there was nothing to clear");
    }

    #[test]
    fn letters_in_a_row_are_taken_once_each() {
        let (store, mut fake) = fake::pair(0);
        for letter in [&b"e"[..], b"e", b"w", b"garbage", b"\xff", &[b'x'; 2000], b"t"] {
            fake.set(NODE, letter);
            assert_eq!(block_on(&store, &mut fake, take_key(&store)), Ok(Key::parse(letter)));
            assert_eq!(fake.value(NODE), Some(&b""[..]));
            assert_eq!(block_on(&store, &mut fake, take_key(&store)), Ok(None), "taken already");
        }
    }

    #[test]
    fn a_letter_that_comes_during_the_transaction_is_the_one_that_is_taken() {
        let (store, mut fake) = fake::pair(0);
        fake.set(NODE, b"e");
        fake.intruders.push_back((NODE.into(), b"w".to_vec()));
        let commits = fake.commits();
        assert_eq!(block_on(&store, &mut fake, take_key(&store)), Ok(Some(Key::Letter('w'))));
        assert_eq!(fake.commits() - commits, 1, "the first commit came to nothing (EAGAIN)");
        assert_eq!(fake.value(NODE), Some(&b""[..]));
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes TRIES_MAX transactions, which is long there")]
    fn a_node_that_never_comes_to_rest_is_given_up_and_its_letter_stays() {
        let (store, mut fake) = fake::pair(0);
        fake.set(NODE, b"e");
        fake.intruders.extend((0..TRIES_MAX).map(|_| (NODE.into(), b"e".to_vec())));
        let error = block_on(&store, &mut fake, take_key(&store)).expect_err("every commit was in vain");
        assert_eq!(error.cause, Cause::Conflict { tries: TRIES_MAX });
        assert_eq!((fake.value(NODE), fake.open_transactions()), (Some(&b"e"[..]), 0));
        assert_eq!(block_on(&store, &mut fake, take_key(&store)), Ok(Some(Key::Letter('e'))));
    }

    #[test]
    fn a_node_that_is_not_ours_keeps_its_letter() {
        let (store, mut fake) = fake::pair(0);
        fake.set(NODE, b"e");
        // The look, the start, the read.
        fake.twists.extend([Twist::Honest, Twist::Honest, Twist::Honest, Twist::Error("EACCES")]);
        let error = block_on(&store, &mut fake, take_key(&store)).expect_err("the write is refused");
        assert_eq!(error.cause, Cause::Xen(Errno::EACCES));
        settle(&store, &mut fake);
        assert_eq!((fake.value(NODE), fake.open_transactions()), (Some(&b"e"[..]), 0));
    }
}

//! Numbers in xenstore: read strictly, written as plain decimal under `data/stasis/`.
//!
//! Runs in tasks. Values in xenstore are written by others, so parsing takes what we ourselves would write and nothing
//! else. Turned down: `str::parse`, which also takes a leading `+` and leading zeros, so that one value
//! would have many spellings.

use crate::error::{Cause, Refusal, StoreError};
use crate::store::Store;
use crate::wire::Kind;
use alloc::format;
use alloc::string::ToString;

/// Where the facts of the last suspend stand, relative to the domain's home.
pub const HOME: &str = "data/stasis";
/// The longest key, in bytes.
pub const KEY_MAX: usize = 64;

/// Why a value is not a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberError {
    /// Nothing there.
    Empty,
    /// Something other than `0`-`9`, or a leading zero.
    NotDecimal,
    /// More than `u64` holds.
    TooBig,
}

/// Reads a decimal number: digits only, no sign, no space, no leading zero.
/// # Errors
/// As [`NumberError`] says.
pub fn parse_u64(text: &[u8]) -> Result<u64, NumberError> {
    if text.is_empty() {
        return Err(NumberError::Empty);
    }
    if text.len() > 1 && text[0] == b'0' {
        return Err(NumberError::NotDecimal);
    }
    let mut value = 0u64;
    for &byte in text {
        if !byte.is_ascii_digit() {
            return Err(NumberError::NotDecimal);
        }
        value = value
            .checked_mul(10)
            .and_then(|value| value.checked_add(u64::from(byte - b'0')))
            .ok_or(NumberError::TooBig)?;
    }
    Ok(value)
}

/// Writes `facts` to `data/stasis/<key>`, all in one transaction: a reader sees those of one suspend.
/// # Errors
/// `Refused(BadKey)` with nothing sent if a key is not 1 to [`KEY_MAX`] of `a-z 0-9 _ -`; else as for a transaction.
pub async fn publish(store: &Store, facts: &[(&str, u64)]) -> Result<(), StoreError> {
    for (key, _) in facts {
        let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
        if key.is_empty() || key.len() > KEY_MAX || !key.bytes().all(plain) {
            let cause = Cause::Refused(Refusal::BadKey);
            return Err(StoreError { op: Kind::Write, object: (*key).into(), cause });
        }
    }
    store
        .transaction(async |tx| {
            for (key, value) in facts {
                tx.write(&format!("{HOME}/{key}"), &value.to_string()).await?;
            }
            Ok(())
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{self, block_on};

    #[test]
    fn numbers_have_one_spelling() {
        assert_eq!(parse_u64(b"0"), Ok(0));
        assert_eq!(parse_u64(b"18446744073709551615"), Ok(u64::MAX));
        assert_eq!(parse_u64(b""), Err(NumberError::Empty));
        assert_eq!(parse_u64(b"18446744073709551616"), Err(NumberError::TooBig));
        assert_eq!(parse_u64(&[b'9'; 4096]), Err(NumberError::TooBig));
        for bad in [&b"00"[..], b"01", b"+1", b"-1", b" 1", b"1 ", b"1\0", b"0x1", b"1e3"] {
            assert_eq!(parse_u64(bad), Err(NumberError::NotDecimal), "{bad:?}");
        }
    }

    #[test]
    fn facts_appear_together_under_data_stasis() {
        let (store, mut fake) = fake::pair(0);
        block_on(&store, &mut fake, publish(&store, &[("resume_ns", 12), ("incarnation", u64::MAX)]))
            .expect("the fake is honest");
        assert_eq!(fake.value("data/stasis/resume_ns"), Some(&b"12"[..]));
        assert_eq!(fake.value("data/stasis/incarnation"), Some(&b"18446744073709551615"[..]));
        assert_eq!(fake.commits(), 1);
    }

    #[test]
    fn a_bad_key_sends_nothing() {
        let (store, mut fake) = fake::pair(0);
        for bad in ["", "a/b", "A", "a b", &"a".repeat(65)] {
            let error = block_on(&store, &mut fake, publish(&store, &[("good", 1), (bad, 1)]))
                .expect_err("a bad key must be refused");
            assert_eq!(error.cause, Cause::Refused(Refusal::BadKey), "{bad:?}");
        }
        assert_eq!(fake.requests(), 0);
    }
}

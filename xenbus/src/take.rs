//! Taking what stands at a node: it is read and cleared in one transaction, so that what is answered is what was read, once.
//!
//! Three times to xenstored and back: to start, to read, and the write together with the commit, which it handles in this order.
//! Whoever waits for the answer waits for each. Turned down: an answer to the write before the commit is sent; a write that
//! fails leaves a transaction that changes nothing. A start and a read at once: the read needs the number that the start brings.

use futures_lite::future::zip;
use xen_sys::Errno;

use crate::error::StoreError;
use crate::scope::Open;
use crate::store::Store;

/// Takes what `parse` makes of the value at `node`, and leaves the node empty. `None`: there is nothing, or no node, and nothing is
/// written.
/// # Errors
/// As for a transaction, and what the write fails on. It then stands there still; except that, if there is no answer to the
/// commit or none that makes sense (`RingBroken`, `TooLong`, `WrongType`), nobody knows. The same holds if the future is dropped
/// during the commit.
pub(crate) async fn take<T>(
    store: &Store,
    node: &str,
    parse: impl Fn(&[u8]) -> Option<T>,
) -> Result<Option<T>, StoreError> {
    let parse = &parse;
    store
        .attempts(|open| async move {
            let value = match open.scope().read_bytes(node).await {
                Ok(value) => parse(&value),
                Err(error) if error.is(Errno::ENOENT) => None,
                Err(error) => return Err(error),
            };
            if value.is_some() {
                cleared(open, node).await?;
            } else {
                open.commit().await?;
            }
            Ok(value)
        })
        .await
}

/// Empties the node and commits, both sent before either is answered.
async fn cleared(open: Open<'_>, node: &str) -> Result<(), StoreError> {
    let scope = open.scope();
    let (written, committed) = zip(scope.write(node, ""), open.commit()).await;
    written.and(committed)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::pin::pin;
    use core::task::Poll;

    use super::*;
    use crate::fake::{self, poll_once};

    #[test]
    fn it_takes_three_times_there_and_back() {
        let (store, mut fake) = fake::pair(0);
        fake.set("node", b"word");
        fake.chunk = 4096;
        let mut taken = pin!(take(&store, "node", |value| Some(value.len())));
        let mut pump = pin!(store.pump());
        let mut times = 0;
        let outcome = loop {
            if let Poll::Ready(outcome) = poll_once(taken.as_mut()) {
                break outcome;
            }
            assert!(poll_once(pump.as_mut()).is_pending());
            fake.step();
            assert!(poll_once(pump.as_mut()).is_pending());
            times += 1;
        };
        assert_eq!((outcome, times), (Ok(Some(4)), 3));
        assert_eq!(fake.value("node"), Some(&b""[..]));
    }
}

//! A watch as its owner holds it.
//!
//! Runs in tasks; one task waits per watch. The handle is the only way to a watch, so a watch lives as long as its
//! handle, through every restore. Turned down: a stream of all events that is searched by its users. Each would have to
//! be awake for everybody's events, and a slow one would hold back the others.

use crate::error::{Cause, StoreError};
use crate::scope::failed;
use crate::store::Store;
use crate::watch_table::{self, WatchId};
use crate::wire::Kind;
use alloc::string::String;
use core::pin::Pin;
use core::task::{Context, Poll};

/// What a watch has to say. It carries no value: read what you watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Something happened at this path, which is relative if the watched path is. May be spurious.
    Path(String),
    /// Anything may have happened: too much to list, or a restore, after which xenstore's content is new.
    Everything,
}

/// A watch. Dropped, it is taken back from xenstored.
#[derive(Debug)]
#[must_use]
pub struct Watch<'a> {
    store: &'a Store,
    id: WatchId,
    path: String,
    /// Cleared by [`Watch::unwatch`].
    armed: bool,
}

impl core::fmt::Debug for Store {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// Watches `path` and all below it. `label` is the readable part of the token that xenstored is given. The first
    /// change comes at once.
    /// # Errors
    /// `Refused`, or xenstored's own answer; see [`crate::Scope`].
    pub async fn watch(&self, path: &str, label: &str) -> Result<Watch<'_>, StoreError> {
        let failed = |cause| failed(Kind::Watch, path)(cause);
        watch_table::check(path, label).map_err(Cause::Refused).map_err(failed)?;
        let (id, request) = self.with(|engine, _| engine.add_watch(path, label));
        // Before the request, so that it is dropped after it: a request not sent is then gone before its watch is.
        let watch = Watch { store: self, id, path: path.into(), armed: true };
        self.request(request, None).await.map_err(failed)?;
        Ok(watch)
    }
}

impl Watch<'_> {
    /// What has changed since the last call, one path at a time; waits if nothing has.
    ///
    /// After a restore it says [`Change::Everything`] once.
    /// # Errors
    /// If the watch does not work: `RingBroken`, or xenstored's answer when it was asked again after a restore. Stays
    /// so until the next restore.
    pub async fn changed(&mut self) -> Result<Change, StoreError> {
        Changed(self).await
    }

    /// Takes the watch back from xenstored, and waits until it is.
    /// # Errors
    /// See [`crate::Scope`]; the watch is gone in any case.
    pub async fn unwatch(mut self) -> Result<(), StoreError> {
        self.armed = false;
        let Some(request) = self.store.with(|engine, fx| engine.remove_watch(self.id, fx)) else {
            return Ok(());
        };
        let outcome = self.store.request(request, None).await;
        outcome.map(drop).map_err(failed(Kind::Unwatch, &self.path))
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.store.with(|engine, fx| engine.drop_watch(self.id, fx));
        }
    }
}

/// The wait of [`Watch::changed`].
struct Changed<'w, 's>(&'w mut Watch<'s>);

impl Future for Changed<'_, '_> {
    type Output = Result<Change, StoreError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Watch { store, id, path, .. } = &*self.0;
        let poll = store.with(|engine, fx| {
            let (poll, old) = engine.watches().poll(*id, cx.waker());
            fx.drop.extend(old);
            poll
        });
        poll.map_err(failed(Kind::Watch, path))
    }
}

impl Drop for Changed<'_, '_> {
    fn drop(&mut self) {
        let Watch { store, id, .. } = &*self.0;
        store.with(|engine, fx| fx.drop.extend(engine.watches().forget_waker(*id)));
    }
}

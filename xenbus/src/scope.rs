//! The operations: read, write, mkdir, rm, directory, inside and outside of transactions.
//!
//! Runs in tasks. One type has them all, [`Scope`]: where an operation happens. A store's own methods are those of the
//! scope "no transaction". Turned down: a trait over store and transaction; its futures would not be known to be
//! `Send` to those who spawn them.

use crate::calls::Request;
use crate::error::{Cause, Refusal, StoreError};
use crate::store::{Reply, Store};
use crate::wire::{self, Kind};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use futures_lite::future::zip;
use xen_sys::Errno;

/// How often a transaction is tried before it is given up.
pub const TRIES_MAX: u32 = 64;
/// How many replies a long directory may take, in all, with starting again when it changes underneath.
const PARTS_MAX: usize = 256;

/// Where operations happen: in a transaction, or in none.
///
/// Paths are absolute (`/local/domain/0/...`) or relative to the domain's home. Every operation fails with
/// `Refused` if it could not be sent, `Xen` with xenstored's own answer, `RingBroken` if there is no connection,
/// `Malformed`, `TooLong` or `WrongType` if the answer makes no sense.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    store: &'a Store,
    /// Id and epoch.
    transaction: Option<(u32, u64)>,
}

impl<'a> Scope<'a> {
    /// Sends `pieces`, waits for the answer; `object` is for the error.
    async fn call(&self, op: Kind, object: &str, pieces: &[&[u8]]) -> Result<(Vec<u8>, u64), StoreError> {
        let (tx_id, epoch) = self.transaction.map_or((0, None), |(id, epoch)| (id, Some(epoch)));
        let outcome = match wire::payload(pieces) {
            Ok(payload) => {
                self.store.request(Request { kind: op, tx_id, payload, watch: None, guessed: false }, epoch).await
            }
            Err(refusal) => Err(Cause::Refused(refusal)),
        };
        outcome.map_err(failed(op, object))
    }

    /// As [`Scope::call`], for an operation on a path.
    async fn on_path(&self, op: Kind, path: &str, rest: &[u8]) -> Result<Vec<u8>, StoreError> {
        wire::check_path(path).map_err(Cause::Refused).map_err(failed(op, path))?;
        Ok(self.call(op, path, &[path.as_bytes(), b"\0", rest]).await?.0)
    }

    /// The value at `path`, as bytes.
    /// # Errors
    /// See [`Scope`].
    pub async fn read_bytes(&self, path: &str) -> Result<Vec<u8>, StoreError> {
        self.on_path(Kind::Read, path, b"").await
    }

    /// The value at `path`.
    /// # Errors
    /// See [`Scope`]; `Malformed` if it is not UTF-8 or has a NUL inside.
    pub async fn read(&self, path: &str) -> Result<String, StoreError> {
        wire::one_string(self.read_bytes(path).await?).map_err(failed(Kind::Read, path))
    }

    /// Writes `value` to `path`, which is made if it is not there, with its parents.
    /// # Errors
    /// See [`Scope`].
    pub async fn write(&self, path: &str, value: &str) -> Result<(), StoreError> {
        self.on_path(Kind::Write, path, value.as_bytes()).await.map(drop)
    }

    /// Makes an empty node at `path` unless there is one.
    /// # Errors
    /// See [`Scope`].
    pub async fn mkdir(&self, path: &str) -> Result<(), StoreError> {
        self.on_path(Kind::Mkdir, path, b"").await.map(drop)
    }

    /// Removes `path` and all below it. That it is not there is an error only if its parent is not there either.
    /// # Errors
    /// See [`Scope`].
    pub async fn rm(&self, path: &str) -> Result<(), StoreError> {
        self.on_path(Kind::Rm, path, b"").await.map(drop)
    }

    /// The names directly below `path`, in no order. Lists too long for one reply are read in parts.
    /// # Errors
    /// See [`Scope`].
    pub async fn directory(&self, path: &str) -> Result<Vec<String>, StoreError> {
        match self.on_path(Kind::Directory, path, b"").await {
            Ok(list) => {
                let mut names = Vec::new();
                wire::names(&list, &mut names).map_err(failed(Kind::Directory, path))?;
                Ok(names)
            }
            Err(error) if error.is(Errno::E2BIG) => self.directory_in_parts(path).await,
            Err(error) => Err(error),
        }
    }

    async fn directory_in_parts(&self, path: &str) -> Result<Vec<String>, StoreError> {
        let failed = |cause| failed(Kind::DirectoryPart, path)(cause);
        let (mut names, mut offset) = (Vec::new(), 0);
        let mut generation: Vec<u8> = Vec::new();
        for _ in 0..PARTS_MAX {
            let rest = offset.to_string() + "\0";
            let reply = self.on_path(Kind::DirectoryPart, path, rest.as_bytes()).await?;
            let part = wire::part(&reply).map_err(failed)?;
            if offset > 0 && part.generation != generation {
                // Names have come or gone, and offsets mean something else now.
                names.clear();
                offset = 0;
                continue;
            }
            generation = part.generation.to_vec();
            offset += part.list.len();
            wire::names(part.list, &mut names).map_err(failed)?;
            if part.last {
                return Ok(names);
            }
        }
        Err(failed(Cause::Malformed("list without an end")))
    }
}

/// Makes an error of a cause.
pub(crate) fn failed(op: Kind, object: &str) -> impl Fn(Cause) -> StoreError {
    move |cause| StoreError { op, object: object.into(), cause }
}

impl Store {
    /// The scope outside of transactions.
    const fn outside(&self) -> Scope<'_> {
        Scope { store: self, transaction: None }
    }

    /// As [`Scope::read`], outside of transactions.
    /// # Errors
    /// See [`Scope`].
    pub async fn read(&self, path: &str) -> Result<String, StoreError> {
        self.outside().read(path).await
    }

    /// As [`Scope::read_bytes`], outside of transactions.
    /// # Errors
    /// See [`Scope`].
    pub async fn read_bytes(&self, path: &str) -> Result<Vec<u8>, StoreError> {
        self.outside().read_bytes(path).await
    }

    /// As [`Scope::write`], outside of transactions.
    /// # Errors
    /// See [`Scope`].
    pub async fn write(&self, path: &str, value: &str) -> Result<(), StoreError> {
        self.outside().write(path, value).await
    }

    /// As [`Scope::mkdir`], outside of transactions.
    /// # Errors
    /// See [`Scope`].
    pub async fn mkdir(&self, path: &str) -> Result<(), StoreError> {
        self.outside().mkdir(path).await
    }

    /// As [`Scope::rm`], outside of transactions.
    /// # Errors
    /// See [`Scope`].
    pub async fn rm(&self, path: &str) -> Result<(), StoreError> {
        self.outside().rm(path).await
    }

    /// As [`Scope::directory`], outside of transactions.
    /// # Errors
    /// See [`Scope`].
    pub async fn directory(&self, path: &str) -> Result<Vec<String>, StoreError> {
        self.outside().directory(path).await
    }

    /// The home of domain `domid`, such as `/local/domain/3`.
    /// # Errors
    /// See [`Scope`].
    pub async fn get_domain_path(&self, domid: u16) -> Result<String, StoreError> {
        let domid = domid.to_string();
        let reply = self.outside().call(Kind::GetDomainPath, &domid, &[domid.as_bytes(), b"\0"]).await?;
        wire::one_string(reply.0).map_err(failed(Kind::GetDomainPath, &domid))
    }

    /// Drops all watches and transactions that an earlier user of this connection (a boot loader) left, if xenstored
    /// offers that; returns whether it does. For the start, before the first watch.
    /// # Errors
    /// `Refused(InUse)` if this store has watches or transactions; else see [`Scope`].
    pub async fn reset_watches(&self) -> Result<bool, StoreError> {
        const OFFER: &str = "control/platform-feature-xs_reset_watches";
        match self.read(OFFER).await {
            Ok(offer) if offer == "1" => {}
            Ok(_) => return Ok(false),
            Err(error) if error.is(Errno::ENOENT) => return Ok(false),
            Err(error) => return Err(error),
        }
        if !self.with(|engine, _| engine.holds_nothing()) {
            return Err(failed(Kind::ResetWatches, "")(Cause::Refused(Refusal::InUse)));
        }
        self.outside().call(Kind::ResetWatches, "", &[b"\0"]).await.map(|_| true)
    }

    /// Runs `body` in a transaction and commits. If others changed what it touched, all of it is done again, `body`
    /// included, up to [`TRIES_MAX`] times; also if `body` itself fails with EAGAIN, which is how some operation in a
    /// conflict may end. If it fails otherwise or is dropped, nothing of it happens.
    ///
    /// Use only the scope inside of `body`: a request outside of the transaction, made there while the store is being
    /// quiesced, waits for the resume, and the quiesce for the transaction.
    /// # Errors
    /// `Conflict` when given up; `Lost` if the connection went with a restore; those of `body`; see [`Scope`].
    pub async fn transaction<T>(
        &self,
        body: impl AsyncFn(&Scope<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let body = &body;
        self.attempts(|open| async move {
            let value = body(&open.scope()).await?;
            open.commit().await.map(|()| value)
        })
        .await
    }

    /// Hands open transactions to `attempt`, which is to commit them, one after the other until one does not end in EAGAIN.
    /// Turned down: `AsyncFn`, as bodies are. Where one is inside of the other, the compiler finds the future no more `Send`.
    /// # Errors
    /// As for [`Store::transaction`].
    pub(crate) async fn attempts<'a, T, F: Future<Output = Result<T, StoreError>>>(
        &'a self,
        attempt: impl Fn(Open<'a>) -> F,
    ) -> Result<T, StoreError> {
        for _ in 0..TRIES_MAX {
            match attempt(Open::start(self).await?).await {
                Err(error) if error.is(Errno::EAGAIN) => {}
                outcome => return outcome,
            }
        }
        Err(failed(Kind::TransactionEnd, "")(Cause::Conflict { tries: TRIES_MAX }))
    }
}

/// An open transaction; dropped, it is aborted.
pub(crate) struct Open<'a> {
    store: &'a Store,
    id: u32,
    epoch: u64,
    over: bool,
}

impl<'a> Open<'a> {
    async fn start(store: &'a Store) -> Result<Self, StoreError> {
        let start = store.outside().call(Kind::TransactionStart, "", &[b"\0"]).await?;
        Self::of(store, Ok(start)).map_err(failed(Kind::TransactionStart, ""))
    }

    /// The one that the answer to a START tells of.
    fn of(store: &'a Store, start: Result<(Vec<u8>, u64), Cause>) -> Result<Self, Cause> {
        let (reply, epoch) = start?;
        Ok(Self { store, id: wire::transaction_id(&reply)?, epoch, over: false })
    }

    pub(crate) const fn scope(&self) -> Scope<'a> {
        Scope { store: self.store, transaction: Some((self.id, self.epoch)) }
    }

    /// It was; true.
    fn was_ended_by_guess(mut self) -> bool {
        self.over = true;
        self.store.with(|engine, fx| engine.ended_by_guess(self.epoch, fx));
        true
    }

    pub(crate) async fn commit(mut self) -> Result<(), StoreError> {
        // From here on the request ends it, also if we are dropped while it is on its way.
        let (scope, end) = (self.scope(), b"T\0");
        self.over = true;
        scope.call(Kind::TransactionEnd, "", &[end]).await.map(drop)
    }
}

/// A transaction whose START is on its way, and what it will be called if xenstored goes on counting.
///
/// All of it can be sent at once then, and is answered in one time there and back. A wrong guess changes nothing: xenstored
/// refuses what names no transaction, and no other of ours can get that number.
pub(crate) struct Guess<'a> {
    store: &'a Store,
    start: Reply<'a>,
    id: u32,
    epoch: u64,
}

impl<'a> Guess<'a> {
    /// Sends START. `None`, and nothing sent, where there is nothing to guess from, or anything is under way: it could be what gets the
    /// number.
    pub(crate) fn start(store: &'a Store) -> Option<Self> {
        let (start, id, epoch) = store.start_by_guess()?;
        Some(Self { store, start, id, epoch })
    }

    pub(crate) const fn scope(&self) -> Scope<'a> {
        Scope { store: self.store, transaction: Some((self.id, self.epoch)) }
    }

    /// All that `work` sends when it is polled first, and the commit. What `work` came to, if that has been committed; `None`: the guess was
    /// wrong, or somebody else was at it too, and nothing is changed.
    /// # Errors
    /// As for [`Open::commit`]: nobody knows whether it has been committed.
    pub(crate) async fn commit<T>(self, work: impl Future<Output = T>) -> Option<Result<T, StoreError>> {
        let Self { store, start, id, epoch } = self;
        let opened = async { Open::of(store, start.await) };
        let end =
            Request { kind: Kind::TransactionEnd, tx_id: id, payload: b"T\0".to_vec(), watch: None, guessed: true };
        let ended = async { store.request(end, Some(epoch)).await };
        let ((opened, done), ended) = zip(zip(opened, work), ended).await;
        let was_sent = !matches!(ended, Err(Cause::Lost | Cause::Refused(_) | Cause::RingBroken(_)));
        let is_it = |open: &Open<'_>| was_sent && (open.id, open.epoch) == (id, epoch);
        let is_right = opened.ok().filter(is_it).is_some_and(Open::was_ended_by_guess);
        match ended.map_err(failed(Kind::TransactionEnd, "")) {
            Ok(_) => Some(Ok(done)),
            Err(error) if !is_right || error.is(Errno::EAGAIN) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.store.with(|engine, fx| engine.abort(self.id, self.epoch, fx));
        }
    }
}

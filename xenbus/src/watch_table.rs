//! Every watch that somebody wants, whether xenstored has it or not, with the changes not yet looked at.
//!
//! Plain data under the store's lock. The table holds intents: a restore takes all watches away, and they are asked
//! for again from here, with the same tokens. Tokens are ours (`label#id`), so that each names one watch for ever
//! and an event for one that is gone cannot be taken for another's.
//!
//! Per watch, changes are kept once per path and at most [`QUEUE_MAX`] of them; one more, and all are replaced
//! by "re-read everything". Turned down: a queue of events as they come. A flood of them would have to be
//! stored, or dropped in silence.
//!
//! ```text
//!   New ──sent──▶ Asking ──OK──▶ Live ──restore──▶ Lost ──sent──▶ AskingAgain ──OK──▶ Live
//!    │              │ └─error─▶ Failed ──restore──▶ Lost              └─error─▶ Failed
//!    │              └─handle dropped (in AskingAgain too)─▶ Leaving ──OK─▶ (UNWATCH sent)
//!    └─ handle dropped in New, Lost, Failed: removed at once. In Live: removed, UNWATCH sent.
//! ```
//!
//! A watch that is asked for again works from its first event on, whether its answer comes or not: xenstored fires every
//! watch that is set, at once, so its owner looks at all it has.

use crate::error::Cause;
use crate::watch::Change;
use crate::wire;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::task::{Poll, Waker};
use xen_sys::Errno;

/// The most paths that are remembered per watch.
pub const QUEUE_MAX: usize = 32;

/// Names a watch within its store, never given twice.
pub(crate) type WatchId = u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its WATCH is queued.
    New,
    /// Its WATCH is on its way.
    Asking,
    /// A restore took it, and its WATCH is on its way; `told` once its owner has heard that everything may have changed.
    AskingAgain { told: bool },
    /// xenstored has it.
    Live,
    /// A restore took it; it will be asked for again.
    Lost,
    /// xenstored refused it, or the ring broke.
    Failed(Cause),
    /// Its WATCH is on its way and nobody wants it any more.
    Leaving,
}

#[derive(Debug)]
struct Entry {
    id: WatchId,
    path: String,
    token: String,
    state: State,
    changed: VecDeque<String>,
    everything: bool,
    waker: Option<Waker>,
}

impl Entry {
    fn all_changed(&mut self) -> Option<Waker> {
        self.changed.clear();
        self.everything = true;
        self.waker.take()
    }

    /// Path and token, each with its NUL: the payload of WATCH and of UNWATCH. Its length was checked in `add`.
    fn payload(&self) -> Vec<u8> {
        [self.path.as_bytes(), b"\0", self.token.as_bytes(), b"\0"].concat()
    }
}

/// All watches of a store.
#[derive(Debug, Default)]
pub(crate) struct WatchTable {
    entries: Vec<Entry>,
    next: WatchId,
}

/// What a watch event led to.
#[must_use]
pub(crate) enum Delivery {
    /// It reached a watch, whose owner is to be woken if it waits.
    Taken(Option<Waker>),
    /// No watch has its token.
    Stray,
}

impl WatchTable {
    fn entry(&mut self, id: WatchId) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.id == id)
    }

    /// A new watch, and the payload with which to ask for it; the caller has checked both strings.
    pub(crate) fn add(&mut self, path: &str, label: &str) -> (WatchId, Vec<u8>) {
        let id = self.next;
        self.next += 1;
        let entry = Entry {
            id,
            path: path.into(),
            token: format!("{label}#{id}"),
            state: State::New,
            changed: VecDeque::new(),
            everything: false,
            waker: None,
        };
        let payload = entry.payload();
        self.entries.push(entry);
        (id, payload)
    }

    /// The WATCH of `id` goes out now.
    pub(crate) fn sent(&mut self, id: WatchId) {
        if let Some(entry) = self.entry(id).filter(|entry| entry.state == State::New) {
            entry.state = State::Asking;
        }
    }

    /// The next watch that a restore took, with its payload; it counts as sent.
    pub(crate) fn next_lost(&mut self) -> Option<(WatchId, Vec<u8>)> {
        let entry = self.entries.iter_mut().find(|entry| entry.state == State::Lost)?;
        entry.state = State::AskingAgain { told: false };
        Some((entry.id, entry.payload()))
    }

    /// True until every watch that a restore took has been asked for again.
    pub(crate) fn has_lost(&self) -> bool {
        self.entries.iter().any(|entry| entry.state == State::Lost)
    }

    /// xenstored has answered the WATCH of `id`. Returns the payload of an UNWATCH if nobody wants it any more.
    pub(crate) fn answered(
        &mut self,
        id: WatchId,
        outcome: Result<(), Cause>,
        wake: &mut Vec<Waker>,
    ) -> Option<Vec<u8>> {
        let at = self.entries.iter().position(|entry| entry.id == id)?;
        let entry = &mut self.entries[at];
        match (entry.state, outcome) {
            (State::Leaving, outcome) => {
                let entry = self.entries.remove(at);
                outcome.is_ok().then(|| entry.payload())
            }
            // The token is ours alone, so one that exists is this watch: a toolstack may resume the old domain in the
            // new one's manner, and then nothing was taken away.
            (State::AskingAgain { told }, Ok(()) | Err(Cause::Xen(Errno::EEXIST))) => {
                entry.state = State::Live;
                if !told {
                    wake.extend(entry.all_changed());
                }
                None
            }
            (State::Asking, Ok(())) => {
                entry.state = State::Live;
                None
            }
            (_, Ok(())) => None,
            (_, Err(cause)) => {
                entry.state = State::Failed(cause);
                wake.extend(entry.waker.take());
                None
            }
        }
    }

    /// The handle of `id` is gone. Returns the payload of an UNWATCH if xenstored has the watch.
    pub(crate) fn remove(&mut self, id: WatchId) -> (Option<Vec<u8>>, Option<Waker>) {
        let Some(at) = self.entries.iter().position(|entry| entry.id == id) else {
            return (None, None);
        };
        let entry = &mut self.entries[at];
        if matches!(entry.state, State::Asking | State::AskingAgain { .. } | State::Leaving) {
            entry.state = State::Leaving;
            return (None, entry.waker.take());
        }
        let entry = self.entries.remove(at);
        ((entry.state == State::Live).then(|| entry.payload()), entry.waker)
    }

    /// A watch event. Events may come before the reply to their WATCH.
    pub(crate) fn event(&mut self, path: &[u8], token: &[u8]) -> Delivery {
        let alive = |state| matches!(state, State::Asking | State::AskingAgain { .. } | State::Live);
        let Some(entry) = self.entries.iter_mut().find(|entry| alive(entry.state) && entry.token.as_bytes() == token)
        else {
            return Delivery::Stray;
        };
        match str::from_utf8(path) {
            _ if entry.state == (State::AskingAgain { told: false }) => {
                entry.state = State::AskingAgain { told: true };
                return Delivery::Taken(entry.all_changed());
            }
            _ if entry.everything => return Delivery::Taken(None),
            Ok(path) if entry.changed.iter().any(|known| known == path) => {}
            Ok(path) if entry.changed.len() < QUEUE_MAX => entry.changed.push_back(path.into()),
            // Full, or a path that cannot be shown: the owner looks at all it has.
            _ => return Delivery::Taken(entry.all_changed()),
        }
        Delivery::Taken(entry.waker.take())
    }

    /// The WATCH of `id` will not be answered any more.
    pub(crate) fn forget(&mut self, id: WatchId) {
        self.entries.retain(|entry| entry.id != id || entry.state != State::Leaving);
    }

    /// An event was lost, nobody knows whose: everybody re-reads.
    pub(crate) fn event_lost(&mut self, wake: &mut Vec<Waker>) {
        wake.extend(self.entries.iter_mut().filter_map(Entry::all_changed));
    }

    /// A new domain: xenstored has none of them.
    pub(crate) fn lose_all(&mut self) {
        self.entries.retain(|entry| entry.state != State::Leaving);
        for entry in &mut self.entries {
            if entry.state != State::New {
                entry.state = State::Lost;
                // Of the old domain; "everything" follows.
                entry.changed.clear();
                entry.everything = false;
            }
        }
    }

    /// The ring broke: no watch will report anything.
    pub(crate) fn fail_all(&mut self, cause: Cause, wake: &mut Vec<Waker>) {
        self.entries.retain(|entry| entry.state != State::Leaving);
        for entry in &mut self.entries {
            entry.state = State::Failed(cause);
            wake.extend(entry.waker.take());
        }
    }

    /// True if nobody wants any of them.
    pub(crate) fn has_none_wanted(&self) -> bool {
        self.entries.iter().all(|entry| entry.state == State::Leaving)
    }

    /// How many there are, wanted or not.
    #[cfg(any(test, feature = "fake"))]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// What the owner of `id` is to look at; if nothing, `waker` is woken when there is. Also returns the waker that
    /// was there before, to be dropped by the caller outside of the lock.
    pub(crate) fn poll(&mut self, id: WatchId, waker: &Waker) -> (Poll<Result<Change, Cause>>, Option<Waker>) {
        let Some(entry) = self.entry(id) else {
            return (Poll::Ready(Err(Cause::Lost)), None);
        };
        if let State::Failed(cause) = entry.state {
            return (Poll::Ready(Err(cause)), entry.waker.take());
        }
        if core::mem::take(&mut entry.everything) {
            return (Poll::Ready(Ok(Change::Everything)), entry.waker.take());
        }
        match entry.changed.pop_front() {
            Some(path) => (Poll::Ready(Ok(Change::Path(path))), entry.waker.take()),
            None => (Poll::Pending, entry.waker.replace(waker.clone())),
        }
    }

    /// The owner of `id` does not wait any more.
    pub(crate) fn forget_waker(&mut self, id: WatchId) -> Option<Waker> {
        self.entry(id).and_then(|entry| entry.waker.take())
    }
}

/// The label in front of a token's `#id`, and the path: checked together, since they share a payload.
pub(crate) fn check(path: &str, label: &str) -> Result<(), crate::error::Refusal> {
    use crate::error::Refusal;
    /// The longest `#id` with its NUL and the path's NUL.
    const REST: usize = 23;
    wire::check_path(path)?;
    if label.contains('\0') {
        return Err(Refusal::Nul);
    }
    let len = path.len() + label.len() + REST;
    if len > wire::PAYLOAD_MAX { Err(Refusal::TooLong { len }) } else { Ok(()) }
}

#[cfg(test)]
#[path = "watch_table_tests.rs"]
mod tests;

//! The store: the connection as tasks see it, and the pump that moves it.
//!
//! Contexts: everything from tasks on any CPU, except [`Store::on_event`], which is for the upcall. The engine is behind
//! a spin lock, held for at most a few ring-fuls of bytes, never across an await, never while waking or ringing. This
//! is a cold path: a handful of requests around a suspend. The upcall must not take that lock (it may have interrupted
//! its holder), so it does one thing: it wakes the pump, through `atomic_waker`. That crate serves because its `wake`
//! never waits, also when it interrupts a `register` on its own CPU: it marks the cell (one `fetch_or`), and takes the
//! waker out (and a `fetch_and`) unless somebody else is at it, who then sees the mark and wakes. What follows is
//! `Waker::wake`, the executor's. There is no flag beside it: the pump registers first and then looks at the ring, so an
//! event between the two is either seen in the ring or wakes it again.
//!
//! Turned down: a lock-free table of requests. Nothing here is hot, and the order between watches, transactions and
//! the gate is much easier to see under one lock.

use crate::calls::{Request, Serial};
use crate::counters::{Counters, Diagnosis};
use crate::engine::{Effects, Engine};
use crate::error::{Cause, RingFault};
use crate::ring::Ring;
use alloc::boxed::Box;
use alloc::vec::Vec;
use atomic_waker::AtomicWaker;
use core::convert::Infallible;
use core::future::poll_fn;
use core::pin::Pin;
use core::task::{Context, Poll};
use spin::Mutex;
use xen_sys::abi::io::xs_wire::XenstoreDomainInterface;

/// Tells xenstored to look at the ring.
pub trait Doorbell {
    /// Sends on the store's port. Called in tasks without any lock of the store. Which port that is may change at every
    /// restore, and is the implementor's to know.
    fn notify(&self);
}

/// A domain's connection to xenstored.
///
/// Futures of a store do nothing unless [`Store::pump`] is being polled. All of them may be dropped at any point:
/// requests not yet sent are taken back, and what a reply brings that nobody waits for is given back.
pub struct Store {
    ring: Ring<'static>,
    engine: Mutex<Engine>,
    pump: AtomicWaker,
    doorbell: Box<dyn Doorbell + Send + Sync>,
}

impl Store {
    /// A store over `page`, of which it must be the only user on this side. Stays over the same page across restores.
    #[must_use]
    pub fn new(page: &'static XenstoreDomainInterface, doorbell: Box<dyn Doorbell + Send + Sync>) -> Self {
        let ring = Ring::new(page);
        Self { ring, engine: Mutex::new(Engine::new(ring)), pump: AtomicWaker::new(), doorbell }
    }

    /// xenstored has rung. Context: upcall or task, any CPU; takes no lock, and is lock-free if the wake-up of the pump's
    /// task is.
    ///
    /// Waking consumes the waker that the pump left, so the pump's task must outlive the binding of the port: else
    /// this could be the last reference to it, and free it in the upcall.
    pub fn on_event(&self) {
        self.pump.wake();
    }

    /// Moves bytes between the ring and the requests, for ever; to be run by exactly one task. A broken ring does not end
    /// it: a restore mends the ring.
    pub async fn pump(&self) -> Infallible {
        poll_fn(|cx| {
            self.pump.register(cx.waker());
            if self.with(|engine, fx| engine.step(self.ring, fx)) {
                // More to read than fits in a turn: let others run, then go on.
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await
    }

    /// Statistics so far. Context: task.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.with(|engine, _| engine.counters)
    }

    /// What can be said of the store at this moment, for a dump; `None` if it is in use just now. Context: any, since it
    /// waits for nothing: the dump may have interrupted the lock's holder.
    #[must_use]
    pub fn diagnosis(&self) -> Option<Diagnosis> {
        self.engine.try_lock().map(|engine| engine.diagnosis())
    }

    /// What broke the ring, if anything did. Cleared by a restore.
    #[must_use]
    pub fn fault(&self) -> Option<RingFault> {
        self.with(|engine, _| engine.fault())
    }

    /// Runs `act` under the lock, and afterwards does what it asked for.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Engine, &mut Effects) -> T) -> T {
        let mut fx = Effects::default();
        let result = act(&mut self.engine.lock(), &mut fx);
        let Effects { wake, drop, bell, pump } = fx;
        if bell {
            self.doorbell.notify();
        }
        if pump {
            self.pump.wake();
        }
        for waker in wake {
            waker.wake();
        }
        core::mem::drop(drop);
        result
    }

    /// The page's view, for what the engine does outside of the pump.
    pub(crate) const fn ring(&self) -> Ring<'static> {
        self.ring
    }

    /// Sends a request. `epoch` is that of its transaction, if it belongs to one.
    pub(crate) fn request(&self, request: Request, epoch: Option<u64>) -> Reply<'_> {
        let state = match self.with(|engine, fx| engine.add(request, epoch, fx)) {
            Ok(serial) => State::Waiting(serial),
            Err(cause) => State::Refused(cause),
        };
        Reply { store: self, state }
    }

    /// Sends a START whose transaction's number can be guessed: the answer to come, the number, and its epoch. Nothing that any task sends
    /// from here on can get that number.
    pub(crate) fn start_by_guess(&self) -> Option<(Reply<'_>, u32, u64)> {
        let (serial, id, epoch) = self.with(Engine::start_by_guess)?;
        Some((Reply { store: self, state: State::Waiting(serial) }, id, epoch))
    }

    /// True if no request is held, in any state: nothing was left behind.
    #[cfg(any(test, feature = "fake"))]
    #[must_use]
    pub fn holds_no_request(&self) -> bool {
        self.with(|engine, _| engine.holds_no_request())
    }

    /// How many watches are remembered, also of those that nobody wants.
    #[cfg(any(test, feature = "fake"))]
    #[must_use]
    pub fn watches_held(&self) -> usize {
        self.with(|engine, _| engine.watches().len())
    }
}

#[derive(Clone, Copy)]
enum State {
    Waiting(Serial),
    Refused(Cause),
    Over,
}

/// The answer to a request, when it comes, with the epoch of its connection.
#[must_use]
pub(crate) struct Reply<'a> {
    store: &'a Store,
    state: State,
}

impl Future for Reply<'_> {
    type Output = Result<(Vec<u8>, u64), Cause>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let poll = match self.state {
            State::Waiting(serial) => self.store.with(|engine, fx| engine.poll(serial, cx.waker(), fx)),
            State::Refused(cause) => Poll::Ready(Err(cause)),
            State::Over => Poll::Pending,
        };
        if poll.is_ready() {
            self.state = State::Over;
        }
        poll
    }
}

impl Drop for Reply<'_> {
    fn drop(&mut self) {
        if let State::Waiting(serial) = self.state {
            self.store.with(|engine, fx| engine.abandon(serial, fx));
        }
    }
}

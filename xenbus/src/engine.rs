//! What happens when bytes come and when there is room: replies find their requests, events their watches, and the next
//! request that may go goes.
//!
//! Plain data under the store's lock; the pump calls [`Engine::step`], everybody else only adds and takes. Nothing is
//! woken, rung or dropped here that could call back into the store: that is collected in [`Effects`] and done by the
//! store after it has let go of the lock.
//!
//! One phase, with one rule each for what may be sent:
//!
//! | phase | goes | waits |
//! |---|---|---|
//! | `Run` | everything; after a restore, the watches first | new transactions beyond [`TRANSACTIONS_MAX`] |
//! | `Draining` | what belongs to an open transaction, or to one that is guessed; UNWATCH | everything else |
//! | `Quiet` | nothing | everything |
//!
//! xenstored's answers are input. One that fits nothing is counted, remembered by name ([`Oddity`]) and survived; only
//! indices or lengths from which no next message can be found break the ring, and that is an error that every
//! caller gets until a restore. An answer that does not come costs whoever waits for it, as long as he does, and nobody
//! else: a request whose future was dropped is late (`calls`), and neither a quiesce nor another request waits for a
//! late one. That is why nothing here may depend on an answer that no future waits for: a transaction is over when its
//! END is sent, and watches that a restore took count as set when they are asked for. xenstored takes a domain's requests
//! in order, so what is sent next finds it so. Turned down: giving up on the first odd answer, which would
//! let a hiccup of dom0 take a guest's shutdown and suspend away; and limits of time here, where there is no clock.

mod gate;

use crate::assemble::{Assembler, Incoming, Outgoing};
use crate::calls::{Abandoned, Answered, Calls, Request, Serial};
use crate::counters::{Counters, Diagnosis, Oddity};
use crate::error::{self, Cause, RingFault, Text};
use crate::ring::Ring;
use crate::watch_table::{Delivery, WatchId, WatchTable};
use crate::wire::{self, Header, Kind};
use alloc::vec::Vec;
use core::task::{Poll, Waker};

/// The most requests that are on their way and waited for at a time. C xenstored allows a domain 20, and stops reading
/// beyond.
pub const SENT_MAX: usize = 8;
/// The most transactions that are open at a time; xenstored allows a domain 10.
pub const TRANSACTIONS_MAX: usize = 8;

/// Reads of a chunk per step, so that a xenstored that never stops talking does not keep us for ever.
const READS_MAX: usize = 64;
const CHUNK: usize = 256;

/// What the store does once it has let go of the lock.
#[derive(Default)]
pub(crate) struct Effects {
    pub(crate) wake: Vec<Waker>,
    /// Wakers that were replaced. Dropping one may run code of the executor.
    pub(crate) drop: Vec<Waker>,
    /// xenstored has something to look at.
    pub(crate) bell: bool,
    /// The pump has something to do.
    pub(crate) pump: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Run,
    Draining,
    Quiet,
}

/// The state of a store.
pub(crate) struct Engine {
    phase: Phase,
    calls: Calls,
    watches: WatchTable,
    incoming: Assembler,
    outgoing: Outgoing,
    /// Set once found, until a restore.
    fault: Option<RingFault>,
    /// Counts connections: a transaction of an earlier one is worth nothing.
    epoch: u64,
    /// Transactions that somebody works in: START on its way and waited for, or answered, and END not yet sent; or, if it was guessed,
    /// not both answered and collected.
    transactions: usize,
    /// One more than the number of this connection's last transaction; `None` before there was one.
    next_transaction: Option<u32>,
    /// The page's error word when this connection began.
    old_error: u32,
    quiescer: Option<Waker>,
    pub(crate) counters: Counters,
}

impl Engine {
    pub(crate) fn new(ring: Ring<'_>) -> Self {
        Self {
            phase: Phase::Run,
            calls: Calls::default(),
            watches: WatchTable::default(),
            incoming: Assembler::default(),
            outgoing: Outgoing::default(),
            fault: None,
            epoch: 0,
            transactions: 0,
            next_transaction: None,
            old_error: ring.error(),
            quiescer: None,
            counters: Counters::default(),
        }
    }

    /// One turn: reads what is there, sends what may go. Returns true if there is more to read than fits in a turn.
    pub(crate) fn step(&mut self, ring: Ring<'_>, fx: &mut Effects) -> bool {
        if self.fault.is_some() {
            self.settle(true, fx);
            return false;
        }
        match self.turn(ring, fx) {
            Ok(Turn { more, drained }) => {
                self.settle(drained, fx);
                more
            }
            Err(fault) => {
                self.break_down(fault, fx);
                false
            }
        }
    }

    fn turn(&mut self, ring: Ring<'_>, fx: &mut Effects) -> Result<Turn, RingFault> {
        if !ring.is_connected() {
            // xenstored resets the ring and rings the bell when it is done.
            return Ok(Turn { more: false, drained: false });
        }
        let mut more = true;
        let mut chunk = [0; CHUNK];
        for _ in 0..READS_MAX {
            let count = ring.read(&mut chunk)?;
            if count == 0 {
                more = false;
                break;
            }
            fx.bell = true;
            let mut bytes = &chunk[..count];
            while let Some(incoming) = self.incoming.take(&mut bytes)? {
                self.receive(incoming, fx);
            }
        }
        // After reading: what xenstored said before it hung up still counts.
        let error = ring.error();
        if error != 0 && error != self.old_error {
            return Err(RingFault::HungUp { error });
        }
        loop {
            if self.outgoing.is_idle() && !self.load_next() {
                break;
            }
            let count = ring.write(self.outgoing.rest())?;
            if count == 0 {
                break;
            }
            fx.bell = true;
            self.outgoing.advance(count);
        }
        let idle = self.outgoing.is_idle() && self.incoming.is_idle() && self.calls.awaited() == 0;
        Ok(Turn { more, drained: !more && idle && self.transactions == 0 && ring.is_empty()? })
    }

    /// Puts the next request that may go into `outgoing`. False if there is none.
    fn load_next(&mut self) -> bool {
        while let Some(request) = self.calls.forget() {
            self.odd(Oddity::Unanswered { asked: request.kind });
            if let Some(id) = request.watch {
                self.watches.forget(id);
            }
        }
        if self.calls.awaited() >= SENT_MAX {
            return false;
        }
        let restoring = self.watches.has_lost();
        let (phase, room) = (self.phase, self.transactions < TRANSACTIONS_MAX);
        let may_go = |request: &Request| {
            let due = request.tx_id != 0 || request.gives_back();
            match phase {
                Phase::Run => due || (!restoring && (room || request.kind != Kind::TransactionStart)),
                Phase::Draining => due,
                Phase::Quiet => false,
            }
        };
        let next = self.calls.next(may_go).or_else(|| {
            let (id, payload) = (phase == Phase::Run).then(|| self.watches.next_lost()).flatten()?;
            let request = Request { kind: Kind::Watch, tx_id: 0, payload, watch: Some(id), guessed: false };
            Some(self.calls.add(request, false))
        });
        let Some((req_id, request, payload)) = next.and_then(|serial| self.calls.send(serial)) else {
            return false;
        };
        // `wire::payload` keeps it to 4096 bytes; the default cannot be reached.
        let len = u32::try_from(payload.len()).unwrap_or(0);
        let header = Header { kind: request.kind.raw(), req_id, tx_id: request.tx_id, len };
        self.outgoing = Outgoing::new(header, &payload);
        match request.kind {
            Kind::TransactionStart => self.transactions += 1,
            // Whatever the answer will be, it is over; but for a guessed one, which is over when both START and END are answered.
            Kind::TransactionEnd => self.transactions -= usize::from(!request.guessed),
            _ => {}
        }
        if let Some(id) = request.watch {
            self.watches.sent(id);
        }
        self.counters.requests += 1;
        true
    }

    fn receive(&mut self, incoming: Incoming, fx: &mut Effects) {
        let (header, outcome) = match incoming {
            Incoming::Message(header, payload) => (header, Ok(payload)),
            Incoming::TooLong(header) => {
                self.odd(Oddity::TooLong { kind: header.kind, len: header.len });
                (header, Err(Cause::TooLong { len: header.len }))
            }
        };
        if header.kind == Kind::WatchEvent.raw() {
            return self.event(outcome, fx);
        }
        let Some((serial, request)) = self.calls.by_req_id(header.req_id) else {
            return self.odd(Oddity::UnknownId { kind: header.kind, req_id: header.req_id });
        };
        let (asked, watch) = (request.kind, request.watch);
        let outcome = outcome.and_then(|payload| {
            if header.kind == Kind::Error.raw() {
                Err(error::named(&payload))
            } else if header.kind == asked.raw() {
                Ok(payload)
            } else {
                Err(Cause::WrongType { kind: header.kind })
            }
        });
        if let Err(Cause::WrongType { kind }) = outcome {
            self.odd(Oddity::WrongType { asked, kind });
        }
        self.counters.replies += 1;
        self.finish(serial, asked, watch, outcome, fx);
    }

    fn event(&mut self, payload: Result<Vec<u8>, Cause>, fx: &mut Effects) {
        let Ok(payload) = payload else {
            // Too long, which has been named.
            return self.watches.event_lost(&mut fx.wake);
        };
        match wire::event(&payload) {
            Some((path, token)) => match self.watches.event(path, token) {
                Delivery::Taken(waker) => {
                    self.counters.events += 1;
                    fx.wake.extend(waker);
                }
                Delivery::Stray => self.counters.events_stray += 1,
            },
            None => {
                self.odd(Oddity::MalformedEvent(Text::new(&payload)));
                self.watches.event_lost(&mut fx.wake);
            }
        }
    }

    /// A request has its answer: keep account of what xenstored now holds for us.
    fn finish(
        &mut self,
        serial: Serial,
        kind: Kind,
        watch: Option<WatchId>,
        mut outcome: Result<Vec<u8>, Cause>,
        fx: &mut Effects,
    ) {
        let starts = kind == Kind::TransactionStart;
        if starts {
            let id = outcome.as_ref().map_err(|&cause| cause).and_then(|payload| wire::transaction_id(payload));
            self.next_transaction = id.ok().and_then(|id| id.checked_add(1));
            outcome = id.and(outcome);
        }
        if let Some(id) = watch {
            let outcome = outcome.as_ref().map(|_| ()).map_err(|&cause| cause);
            if let Some(payload) = self.watches.answered(id, outcome, &mut fx.wake) {
                self.give_back(Kind::Unwatch, 0, payload);
            }
        }
        let failed = outcome.is_err();
        match self.calls.answer(serial, outcome, &mut fx.wake) {
            Answered::Kept => self.transactions -= usize::from(starts && failed),
            Answered::Late(Ok(payload)) => {
                self.transactions += usize::from(starts);
                self.undo(kind, &payload);
            }
            Answered::Late(Err(_)) => {}
        }
    }

    /// Nobody collected this answer: gives back what it brought.
    fn undo(&mut self, kind: Kind, payload: &[u8]) {
        if kind == Kind::TransactionStart
            && let Ok(tx_id) = wire::transaction_id(payload)
        {
            self.give_back(Kind::TransactionEnd, tx_id, b"F\0".to_vec());
        }
    }

    /// Queues a request for whose answer nobody waits.
    fn give_back(&mut self, kind: Kind, tx_id: u32, payload: Vec<u8>) {
        if self.fault.is_none() {
            self.calls.add(Request { kind, tx_id, payload, watch: None, guessed: false }, false);
        }
    }

    fn odd(&mut self, oddity: Oddity) {
        self.counters.oddities += 1;
        self.counters.last_oddity = Some(oddity);
    }

    /// Queues a request of a future. `epoch` is that of its transaction, if it belongs to one.
    /// # Errors
    /// `RingBroken`; `Lost` if the transaction's connection is no more.
    pub(crate) fn add(&mut self, request: Request, epoch: Option<u64>, fx: &mut Effects) -> Result<Serial, Cause> {
        if epoch.is_some_and(|epoch| epoch != self.epoch) {
            return Err(Cause::Lost);
        }
        match self.fault {
            Some(fault) if self.phase == Phase::Run => Err(Cause::RingBroken(fault)),
            _ => {
                fx.pump = true;
                Ok(self.calls.add(request, true))
            }
        }
    }

    /// The answer to a request of a future, with the epoch it belongs to.
    pub(crate) fn poll(
        &mut self,
        serial: Serial,
        waker: &Waker,
        fx: &mut Effects,
    ) -> Poll<Result<(Vec<u8>, u64), Cause>> {
        let (poll, old) = self.calls.poll(serial, waker);
        fx.drop.extend(old);
        poll.map_ok(|payload| (payload, self.epoch))
    }

    /// The future of a request is gone.
    pub(crate) fn abandon(&mut self, serial: Serial, fx: &mut Effects) {
        let (left, waker) = self.calls.abandon(serial);
        fx.drop.extend(waker);
        match left {
            Abandoned::Nothing => return,
            Abandoned::Late(kind) => self.transactions -= usize::from(kind == Kind::TransactionStart),
            Abandoned::Answer(kind, payload) => self.undo(kind, &payload),
        }
        // A quiesce may have waited for just this.
        fx.pump = true;
    }

    /// Ends a transaction for whose end nobody waits.
    pub(crate) fn abort(&mut self, tx_id: u32, epoch: u64, fx: &mut Effects) {
        if epoch == self.epoch {
            self.give_back(Kind::TransactionEnd, tx_id, b"F\0".to_vec());
            fx.pump = true;
        }
    }

    /// Queues a START, and says what its transaction will most likely be called, with the epoch. `None`, and nothing queued, where that is
    /// not known, or anything is under way that could come before it.
    pub(crate) fn start_by_guess(&mut self, fx: &mut Effects) -> Option<(Serial, u32, u64)> {
        let (id, epoch) = self.guess()?;
        fx.pump = true;
        let payload = b"\0".to_vec();
        let start = Request { kind: Kind::TransactionStart, tx_id: 0, payload, watch: None, guessed: false };
        Some((self.calls.add(start, true), id, epoch))
    }

    fn guess(&self) -> Option<(u32, u64)> {
        let alone = self.phase == Phase::Run && self.transactions == 0 && self.calls.are_all_answered();
        self.next_transaction.filter(|_| alone && !self.watches.has_lost()).map(|id| (id, self.epoch))
    }

    /// The transaction of [`Engine::start_by_guess`] has been ended, by an END that named it before it was known.
    pub(crate) fn ended_by_guess(&mut self, epoch: u64, fx: &mut Effects) {
        if epoch == self.epoch {
            self.transactions -= 1;
            // A quiesce may have waited for just this.
            fx.pump = true;
        }
    }

    /// Notes a watch, and returns the request that asks for it.
    pub(crate) fn add_watch(&mut self, path: &str, label: &str) -> (WatchId, Request) {
        let (id, payload) = self.watches.add(path, label);
        (id, Request { kind: Kind::Watch, tx_id: 0, payload, watch: Some(id), guessed: false })
    }

    /// Forgets a watch, and returns the request that gives it back if xenstored has it.
    pub(crate) fn remove_watch(&mut self, id: WatchId, fx: &mut Effects) -> Option<Request> {
        let (payload, waker) = self.watches.remove(id);
        fx.drop.extend(waker);
        payload.map(|payload| Request { kind: Kind::Unwatch, tx_id: 0, payload, watch: None, guessed: false })
    }

    /// As [`Engine::remove_watch`], and nobody waits for the answer.
    pub(crate) fn drop_watch(&mut self, id: WatchId, fx: &mut Effects) {
        if let Some(Request { payload, .. }) = self.remove_watch(id, fx) {
            self.give_back(Kind::Unwatch, 0, payload);
            fx.pump = true;
        }
    }

    /// The watches, for their owners to look at.
    pub(crate) fn watches(&mut self) -> &mut WatchTable {
        &mut self.watches
    }

    /// True if xenstored holds nothing that anybody here wants.
    pub(crate) fn holds_nothing(&self) -> bool {
        self.watches.has_none_wanted() && self.transactions == 0
    }

    /// What can be said of it at this moment.
    pub(crate) fn diagnosis(&self) -> Diagnosis {
        let (awaited, late) = (self.calls.awaited(), self.calls.late());
        Diagnosis { counters: self.counters, awaited, late, fault: self.fault }
    }

    /// What broke the ring, if anything did.
    pub(crate) const fn fault(&self) -> Option<RingFault> {
        self.fault
    }

    /// True if no request is held, in any state.
    #[cfg(any(test, feature = "fake"))]
    pub(crate) fn holds_no_request(&self) -> bool {
        self.calls.is_empty()
    }
}

/// What a turn came to.
struct Turn {
    more: bool,
    /// Nothing is on its way in either direction.
    drained: bool,
}

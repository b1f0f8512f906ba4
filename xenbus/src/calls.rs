//! The requests of a store: queued, on their way, or answered and not yet collected.
//!
//! Plain data under the store's lock. A request outlives the future that made it: once on its way, its reply may come
//! and give us something (a transaction, a watch) that must be given back. It may also never come, and then nothing may
//! wait for it: a request on its way that no future waits for is *late*. Late ones take no place among those that may be
//! out at a time, do not hold up a suspend, and the oldest of too many is forgotten.
//!
//! Turned down: tying the request to its future by a shared cell per request; everything here needs the lock anyway, and
//! one table can be looked through. It is short, so what is asked of it is counted when it is asked.

use crate::error::Cause;
use crate::watch_table::WatchId;
use crate::wire::Kind;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::task::{Poll, Waker};

/// The most late requests that are remembered: all watches that xenstored allows a domain (128) may be asked for again at
/// once, by nobody's future.
pub const LATE_MAX: usize = 160;

/// Names a request within its store, never given twice; rising in the order in which they were made.
pub(crate) type Serial = u64;

/// What a request is.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) kind: Kind,
    /// The transaction, 0 for none.
    pub(crate) tx_id: u32,
    /// Empty once it is on its way.
    pub(crate) payload: Vec<u8>,
    /// The watch that it asks for.
    pub(crate) watch: Option<WatchId>,
    /// It ends a transaction whose number is guessed: whether there is one is known when the START before it is answered.
    pub(crate) guessed: bool,
}

impl Request {
    /// True if it gives back something that xenstored holds for us. Such a request is sent even when its future is gone.
    pub(crate) const fn gives_back(&self) -> bool {
        matches!(self.kind, Kind::Unwatch | Kind::TransactionEnd) && !self.guessed
    }
}

#[derive(Debug)]
enum State {
    Queued,
    Sent { req_id: u32 },
    Done(Result<Vec<u8>, Cause>),
}

#[derive(Debug)]
struct Call {
    request: Request,
    state: State,
    /// False once the future is gone, and for requests that never had one.
    wanted: bool,
    waker: Option<Waker>,
}

impl Call {
    const fn is_sent(&self) -> bool {
        matches!(self.state, State::Sent { .. })
    }
}

/// All requests of a store.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    calls: BTreeMap<Serial, Call>,
    next_serial: Serial,
    last_req_id: u32,
}

/// A request that has its answer.
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    /// Its future will collect it.
    Kept,
    /// It was late; the answer is for who made it of no use, but is what xenstored now holds for us.
    Late(Result<Vec<u8>, Cause>),
}

/// What was left of a request whose future went away.
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Abandoned {
    /// Nothing to do: it never went out, or goes out all the same, or its reply brought nothing.
    Nothing,
    /// It is on its way and late from now on.
    Late(Kind),
    /// Its reply was there, uncollected, and is this.
    Answer(Kind, Vec<u8>),
}

impl Calls {
    /// Queues a request; `wanted` if a future will collect the reply.
    pub(crate) fn add(&mut self, request: Request, wanted: bool) -> Serial {
        let serial = self.next_serial;
        self.next_serial += 1;
        self.calls.insert(serial, Call { request, state: State::Queued, wanted, waker: None });
        serial
    }

    /// How many are on their way and waited for.
    pub(crate) fn awaited(&self) -> usize {
        self.calls.values().filter(|call| call.wanted && call.is_sent()).count()
    }

    /// How many are on their way and late.
    pub(crate) fn late(&self) -> usize {
        self.calls.values().filter(|call| !call.wanted && call.is_sent()).count()
    }

    /// Takes out the oldest late one, if there are more than [`LATE_MAX`].
    pub(crate) fn forget(&mut self) -> Option<Request> {
        if self.late() <= LATE_MAX {
            return None;
        }
        let (&oldest, _) = self.calls.iter().find(|(_, call)| !call.wanted && call.is_sent())?;
        self.calls.remove(&oldest).map(|call| call.request)
    }

    /// Their connection is no more.
    pub(crate) fn forget_late(&mut self) {
        self.calls.retain(|_, call| call.wanted || !call.is_sent());
    }

    /// The oldest queued request that `may_go`.
    pub(crate) fn next(&self, may_go: impl Fn(&Request) -> bool) -> Option<Serial> {
        let ready = |call: &Call| matches!(call.state, State::Queued) && may_go(&call.request);
        self.calls.iter().find(|(_, call)| ready(call)).map(|(&serial, _)| serial)
    }

    /// Gives a queued request its id on the wire, and its payload out.
    pub(crate) fn send(&mut self, serial: Serial) -> Option<(u32, &Request, Vec<u8>)> {
        let req_id = self.fresh_req_id();
        let call = self.calls.get_mut(&serial)?;
        call.state = State::Sent { req_id };
        let payload = core::mem::take(&mut call.request.payload);
        Some((req_id, &call.request, payload))
    }

    /// An id that no request on its way has; never 0, which watch events carry.
    fn fresh_req_id(&mut self) -> u32 {
        loop {
            self.last_req_id = self.last_req_id.wrapping_add(1);
            if self.last_req_id != 0 && self.find(self.last_req_id).is_none() {
                return self.last_req_id;
            }
        }
    }

    /// The request on its way with this id.
    fn find(&self, req_id: u32) -> Option<Serial> {
        let is = |call: &Call| matches!(call.state, State::Sent { req_id: id } if id == req_id);
        self.calls.iter().find(|(_, call)| is(call)).map(|(&serial, _)| serial)
    }

    /// The request on its way with this id, and its serial.
    pub(crate) fn by_req_id(&self, req_id: u32) -> Option<(Serial, &Request)> {
        let serial = self.find(req_id)?;
        self.calls.get(&serial).map(|call| (serial, &call.request))
    }

    /// The request has been answered.
    pub(crate) fn answer(&mut self, serial: Serial, result: Result<Vec<u8>, Cause>, wake: &mut Vec<Waker>) -> Answered {
        match self.calls.get_mut(&serial) {
            Some(call) if call.wanted => {
                wake.extend(call.waker.take());
                call.state = State::Done(result);
                Answered::Kept
            }
            _ => {
                self.calls.remove(&serial);
                Answered::Late(result)
            }
        }
    }

    /// Ends, with what `verdict` says, every unanswered request for which it says anything; those that nobody wants go.
    pub(crate) fn end_where(
        &mut self,
        verdict: impl Fn(&Request) -> Option<Result<Vec<u8>, Cause>>,
        wake: &mut Vec<Waker>,
    ) {
        self.calls.retain(|_, call| {
            if matches!(call.state, State::Done(_)) {
                return true;
            }
            let Some(result) = verdict(&call.request) else {
                return true;
            };
            wake.extend(call.waker.take());
            call.state = State::Done(result);
            call.wanted
        });
    }

    /// The connection is gone: a transaction that was started and not yet collected is worth nothing.
    pub(crate) fn lose_transactions(&mut self) {
        for call in self.calls.values_mut().filter(|call| call.request.kind == Kind::TransactionStart) {
            if let State::Done(result) = &mut call.state {
                *result = Err(Cause::Lost);
            }
        }
    }

    /// The result of a request, once. Until then `waker` is woken when it comes. Also returns the waker that was there
    /// before, to be dropped by the caller outside of the lock.
    pub(crate) fn poll(&mut self, serial: Serial, waker: &Waker) -> (Poll<Result<Vec<u8>, Cause>>, Option<Waker>) {
        match self.calls.remove(&serial) {
            Some(Call { state: State::Done(result), waker, .. }) => (Poll::Ready(result), waker),
            Some(mut call) => {
                let old = call.waker.replace(waker.clone());
                self.calls.insert(serial, call);
                (Poll::Pending, old)
            }
            None => (Poll::Ready(Err(Cause::Lost)), None),
        }
    }

    /// The future of a request is gone.
    pub(crate) fn abandon(&mut self, serial: Serial) -> (Abandoned, Option<Waker>) {
        let Some(call) = self.calls.get_mut(&serial) else {
            return (Abandoned::Nothing, None);
        };
        let waker = call.waker.take();
        call.wanted = false;
        match call.state {
            State::Sent { .. } => return (Abandoned::Late(call.request.kind), waker),
            State::Queued if call.request.gives_back() => return (Abandoned::Nothing, waker),
            State::Queued | State::Done(_) => {}
        }
        let answer = match self.calls.remove(&serial) {
            Some(Call { state: State::Done(Ok(answer)), request, .. }) => Abandoned::Answer(request.kind, answer),
            _ => Abandoned::Nothing,
        };
        (answer, waker)
    }

    /// True if every request has been answered.
    pub(crate) fn are_all_answered(&self) -> bool {
        self.calls.values().all(|call| matches!(call.state, State::Done(_)))
    }

    /// True if nothing is held at all.
    #[cfg(any(test, feature = "fake"))]
    pub(crate) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn request(kind: Kind) -> Request {
        Request { kind, tx_id: 0, payload: vec![], watch: None, guessed: false }
    }

    fn sent(calls: &mut Calls, kind: Kind, wanted: bool) -> (Serial, u32) {
        let serial = calls.add(request(kind), wanted);
        let req_id = calls.send(serial).expect("just added").0;
        (serial, req_id)
    }

    #[test]
    fn the_oldest_that_may_go_is_next() {
        let mut calls = Calls::default();
        let read = calls.add(request(Kind::Read), true);
        let write = calls.add(request(Kind::Write), true);
        assert_eq!(calls.next(|_| true), Some(read));
        assert_eq!(calls.next(|request| request.kind == Kind::Write), Some(write));
        assert_eq!(calls.next(|_| false), None);
        assert!(calls.send(read).is_some());
        assert_eq!((calls.next(|_| true), calls.awaited()), (Some(write), 1));
    }

    #[test]
    fn ids_are_never_0_nor_taken() {
        let mut calls = Calls { last_req_id: u32::MAX - 1, ..Calls::default() };
        let (_, last) = sent(&mut calls, Kind::Read, true);
        let (_, first) = sent(&mut calls, Kind::Read, true);
        assert_eq!((last, first), (u32::MAX, 1));
        calls.last_req_id = 0;
        assert_eq!(sent(&mut calls, Kind::Read, true).1, 2);
    }

    #[test]
    fn an_answer_is_collected_once() {
        let mut calls = Calls::default();
        let (serial, req_id) = sent(&mut calls, Kind::Read, true);
        assert!(calls.poll(serial, Waker::noop()).0.is_pending());
        assert_eq!(calls.by_req_id(req_id).map(|(serial, _)| serial), Some(serial));
        let mut wake = vec![];
        assert_eq!(calls.answer(serial, Ok(vec![1]), &mut wake), Answered::Kept);
        assert_eq!((wake.len(), calls.awaited()), (1, 0));
        assert!(calls.by_req_id(req_id).is_none(), "a second reply finds nothing");
        assert_eq!(calls.poll(serial, Waker::noop()).0, Poll::Ready(Ok(vec![1])));
        assert!(calls.is_empty());
    }

    #[test]
    fn abandoned_requests_leave_nothing_behind() {
        let mut calls = Calls::default();
        let queued = calls.add(request(Kind::Read), true);
        assert_eq!(calls.abandon(queued).0, Abandoned::Nothing);
        assert!(calls.is_empty());

        let (on_its_way, _) = sent(&mut calls, Kind::TransactionStart, true);
        assert_eq!(calls.abandon(on_its_way).0, Abandoned::Late(Kind::TransactionStart));
        assert_eq!((calls.awaited(), calls.late()), (0, 1));
        let answer = calls.answer(on_its_way, Ok(b"7\0".to_vec()), &mut vec![]);
        assert_eq!(answer, Answered::Late(Ok(b"7\0".to_vec())));
        assert!(calls.is_empty());

        let (answered, _) = sent(&mut calls, Kind::TransactionStart, true);
        assert_eq!(calls.answer(answered, Ok(b"8\0".to_vec()), &mut vec![]), Answered::Kept);
        assert_eq!(calls.abandon(answered).0, Abandoned::Answer(Kind::TransactionStart, b"8\0".to_vec()));
        assert!(calls.is_empty());
    }

    #[test]
    fn what_gives_something_back_is_sent_all_the_same() {
        let mut calls = Calls::default();
        let serial = calls.add(request(Kind::Unwatch), true);
        assert_eq!(calls.abandon(serial).0, Abandoned::Nothing);
        assert_eq!(calls.next(|_| true), Some(serial));
    }

    #[test]
    fn of_too_many_late_ones_the_oldest_is_forgotten() {
        let mut calls = Calls::default();
        let (awaited, _) = sent(&mut calls, Kind::Read, true);
        let (oldest, _) = sent(&mut calls, Kind::Write, true);
        for _ in 0..LATE_MAX {
            let _ = sent(&mut calls, Kind::Read, false);
        }
        assert_eq!((calls.late(), calls.forget().is_none()), (LATE_MAX, true));
        assert_eq!(calls.abandon(oldest).0, Abandoned::Late(Kind::Write));
        assert_eq!(calls.forget().map(|request| request.kind), Some(Kind::Write));
        assert_eq!((calls.late(), calls.forget().is_none()), (LATE_MAX, true));
        calls.forget_late();
        assert_eq!((calls.late(), calls.awaited()), (0, 1));
        assert!(calls.poll(awaited, Waker::noop()).0.is_pending());
    }

    #[test]
    fn ending_spares_what_is_answered() {
        let mut calls = Calls::default();
        let (done, _) = sent(&mut calls, Kind::Read, true);
        assert_eq!(calls.answer(done, Ok(vec![]), &mut vec![]), Answered::Kept);
        let (wanted, _) = sent(&mut calls, Kind::Read, true);
        let (_unwanted, _) = sent(&mut calls, Kind::Read, false);
        let spared = calls.add(request(Kind::Write), true);
        let verdict = |request: &Request| (request.kind == Kind::Read).then_some(Err(Cause::Lost));
        calls.end_where(verdict, &mut vec![]);
        assert_eq!((calls.awaited(), calls.late()), (0, 0));
        assert_eq!(calls.poll(done, Waker::noop()).0, Poll::Ready(Ok(vec![])));
        assert_eq!(calls.poll(wanted, Waker::noop()).0, Poll::Ready(Err(Cause::Lost)));
        assert!(calls.poll(spared, Waker::noop()).0.is_pending());
        assert_eq!(calls.abandon(spared).0, Abandoned::Nothing);
        assert!(calls.is_empty());
    }
}

//! The fake xenstored: a tree, watches, transactions, and a list of ways to misbehave.
//!
//! It is strict about what it is sent: a request that does not have the shape that the real one wants is answered with
//! EINVAL, a payload too long ends the connection. Its conflicts are coarse: a transaction fails if anything at
//! all was changed since it began, which the real ones may do too.

mod requests;

use self::requests::{absolute, is_below, put};
use super::Bell;
use crate::ring::RING_LEN;
use crate::wire::{HEADER_LEN, Header, Kind, PAYLOAD_MAX};
use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use xen_sys::abi::io::xs_wire::{self as abi, XenstoreDomainInterface};

/// The home of the fake's only domain.
pub const HOME: &str = "/local/domain/7";

/// What is done to one reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Twist {
    /// Nothing.
    Honest,
    /// The request is not carried out; this is the error's name.
    Error(&'static str),
    /// The reply gets a payload of this many bytes.
    Long(usize),
    /// The reply goes to this request id.
    Id(u32),
    /// The reply has this type.
    Type(u32),
    /// The reply has this payload.
    Payload(Vec<u8>),
    /// The reply comes twice.
    Twice,
    /// No reply comes.
    Never,
    /// These bytes come in its place.
    Raw(Vec<u8>),
    /// A watch event, for no watch of ours, comes before it.
    AfterEvent,
}

type Nodes = BTreeMap<String, Vec<u8>>;

struct Transaction {
    nodes: Nodes,
    changed: Vec<String>,
    version: u64,
}

/// A xenstored for one domain.
pub struct Fake {
    page: &'static XenstoreDomainInterface,
    bell: Bell,
    nodes: Nodes,
    /// Counts changes of `nodes`.
    version: u64,
    watches: Vec<(String, String)>,
    transactions: BTreeMap<u32, Transaction>,
    last_transaction: u32,
    input: Vec<u8>,
    output: VecDeque<u8>,
    /// Messages not yet put out; true for a reply.
    held: Vec<(bool, Vec<u8>)>,
    /// The most bytes that are moved per step in each direction.
    pub chunk: usize,
    /// Beyond 1: messages are held back until there are this many or nothing else to do, and then come in reverse order.
    pub reorder: usize,
    /// For the next replies, in order; afterwards it is honest.
    pub twists: VecDeque<Twist>,
    /// It does not even look at the ring.
    pub mute: bool,
    /// Writes of somebody else, one before each of the next commits.
    pub intruders: VecDeque<(String, Vec<u8>)>,
    /// It has more to do by itself.
    moving: bool,
    log: Vec<Kind>,
    commits: usize,
    /// Requests received and not yet answered.
    open: usize,
    most_open: usize,
    most_transactions: usize,
}

fn message(kind: u32, req_id: u32, tx_id: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("tests keep it short");
    let mut bytes = Header { kind, req_id, tx_id, len }.encode().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

impl Fake {
    pub(super) fn new(page: &'static XenstoreDomainInterface, bell: Bell) -> Self {
        let nodes = ["", "/local", "/local/domain", HOME].map(|path| (path.to_owned(), vec![]));
        Self {
            page,
            bell,
            nodes: nodes.into(),
            version: 0,
            watches: vec![],
            transactions: BTreeMap::new(),
            last_transaction: 0,
            input: vec![],
            output: VecDeque::new(),
            held: vec![],
            chunk: 4096,
            reorder: 1,
            twists: VecDeque::new(),
            mute: false,
            intruders: VecDeque::new(),
            moving: false,
            log: vec![],
            commits: 0,
            open: 0,
            most_open: 0,
            most_transactions: 0,
        }
    }

    /// One step if the bell was rung or the last step left it something to do; true if it moved any byte.
    ///
    /// A full reply ring or an empty request ring is nothing to do: there it sleeps until the bell.
    pub fn step_if_rung(&mut self) -> bool {
        let rung = self.bell.take();
        if !(rung || self.moving) {
            return false;
        }
        let moved = self.step();
        self.moving = self.has_more();
        moved
    }

    /// Takes in up to `chunk` bytes, handles what is whole, puts out up to `chunk` bytes. True if any byte moved.
    pub fn step(&mut self) -> bool {
        if self.mute || self.page.connection.load(Acquire) != 0 || self.page.error.load(Relaxed) != 0 {
            return false;
        }
        let taken = self.take_in();
        while let Some((header, payload)) = self.whole_message() {
            self.handle(header, &payload);
        }
        if self.held.len() >= self.reorder || (taken == 0 && self.output.is_empty()) {
            if self.reorder > 1 {
                self.held.reverse();
            }
            for (is_reply, bytes) in self.held.drain(..) {
                self.open -= usize::from(is_reply);
                self.output.extend(bytes);
            }
        }
        taken + self.put_out() > 0
    }

    /// True if it can go on without the client.
    fn has_more(&self) -> bool {
        let awake = !self.mute && self.page.connection.load(Acquire) == 0 && self.page.error.load(Relaxed) == 0;
        let used = |cons: u32, prod: u32| prod.wrapping_sub(cons);
        let requests = used(self.page.req_cons.load(Relaxed), self.page.req_prod.load(Acquire));
        let replies = used(self.page.rsp_cons.load(Acquire), self.page.rsp_prod.load(Relaxed));
        let can_put = !self.output.is_empty() && replies < RING_LEN;
        awake && (requests > 0 || can_put || !self.held.is_empty())
    }

    fn take_in(&mut self) -> usize {
        // ORDERING: Acquire on theirs, Release on ours: the other halves are in `ring.rs`.
        let (cons, prod) = (self.page.req_cons.load(Relaxed), self.page.req_prod.load(Acquire));
        let count = prod.wrapping_sub(cons);
        assert!(count <= RING_LEN, "the client broke the request ring");
        let count = count.min(u32::try_from(self.chunk).unwrap_or(u32::MAX));
        for i in 0..count {
            self.input.push(self.page.req[(cons.wrapping_add(i) % RING_LEN) as usize].load(Relaxed));
        }
        self.page.req_cons.store(cons.wrapping_add(count), Release);
        count as usize
    }

    fn put_out(&mut self) -> usize {
        // ORDERING: as in `take_in`.
        let (cons, prod) = (self.page.rsp_cons.load(Acquire), self.page.rsp_prod.load(Relaxed));
        let room = RING_LEN.saturating_sub(prod.wrapping_sub(cons)) as usize;
        let count = room.min(self.chunk).min(self.output.len());
        let mut index = prod;
        for byte in self.output.drain(..count) {
            self.page.rsp[(index % RING_LEN) as usize].store(byte, Relaxed);
            index = index.wrapping_add(1);
        }
        self.page.rsp_prod.store(index, Release);
        count
    }

    fn whole_message(&mut self) -> Option<(Header, Vec<u8>)> {
        let header = Header::decode(self.input.get(..HEADER_LEN)?.try_into().ok()?);
        let len = header.len as usize;
        if len > PAYLOAD_MAX {
            self.page.error.store(abi::XENSTORE_ERROR_PROTO, Relaxed);
            return None;
        }
        let payload = self.input.get(HEADER_LEN..HEADER_LEN + len)?.to_vec();
        self.input.drain(..HEADER_LEN + len);
        Some((header, payload))
    }

    fn handle(&mut self, header: Header, payload: &[u8]) {
        self.log.extend(Kind::from_raw(header.kind));
        self.open += 1;
        self.most_open = self.most_open.max(self.open);
        let twist = self.twists.pop_front().unwrap_or(Twist::Honest);
        let (kind, answer) = match twist {
            Twist::Error(name) => (Kind::Error.raw(), format!("{name}\0").into_bytes()),
            _ => match self.carry_out(header, payload) {
                Ok(answer) => (header.kind, answer),
                Err(name) => (Kind::Error.raw(), format!("{name}\0").into_bytes()),
            },
        };
        let reply = |kind, req_id, payload: &[u8]| message(kind, req_id, header.tx_id, payload);
        let bytes = match twist {
            Twist::Honest | Twist::Error(_) => reply(kind, header.req_id, &answer),
            Twist::Long(len) => reply(header.kind, header.req_id, &vec![b'x'; len]),
            Twist::Id(id) => reply(kind, id, &answer),
            Twist::Type(kind) => reply(kind, header.req_id, &answer),
            Twist::Payload(payload) => reply(header.kind, header.req_id, &payload),
            Twist::Twice => reply(kind, header.req_id, &answer).repeat(2),
            Twist::Never => return,
            Twist::Raw(bytes) => bytes,
            Twist::AfterEvent => {
                let mut bytes = message(Kind::WatchEvent.raw(), 0, 0, b"elsewhere\0nobody\0");
                bytes.extend(reply(kind, header.req_id, &answer));
                bytes
            }
        };
        self.held.push((true, bytes));
    }

    /// Somebody else writes.
    pub fn set(&mut self, path: &str, value: &[u8]) {
        let path = absolute(path);
        put(&mut self.nodes, &path, value);
        self.fire(&path);
        self.moving = true;
    }

    /// The next transaction's number is as if there had been `count` others.
    pub fn skip_transaction_ids(&mut self, count: u32) {
        self.last_transaction += count;
    }

    /// Puts `bytes` on the way to the client.
    pub fn say(&mut self, bytes: &[u8]) {
        self.output.extend(bytes);
        self.moving = true;
    }

    /// Puts a message on the way to the client.
    pub fn say_message(&mut self, kind: u32, req_id: u32, payload: &[u8]) {
        self.say(&message(kind, req_id, 0, payload));
    }

    /// As at a restore: watches and transactions are gone, the home is empty; the indices are set to 0 (C xenstored) or
    /// kept (oxenstored).
    pub fn restore(&mut self, reset_indices: bool) {
        self.watches.clear();
        self.transactions.clear();
        self.nodes.retain(|path, _| path == HOME || !is_below(path, HOME));
        self.version += 1;
        self.input.clear();
        self.output.clear();
        self.held.clear();
        self.twists.clear();
        self.open = 0;
        self.log.clear();
        if reset_indices {
            for index in [&self.page.req_cons, &self.page.req_prod, &self.page.rsp_cons, &self.page.rsp_prod] {
                // ORDERING: Relaxed, the domain is not running.
                index.store(0, Relaxed);
            }
        }
        self.page.error.store(0, Relaxed);
    }

    /// The shared page, to spoil.
    #[must_use]
    pub const fn page(&self) -> &'static XenstoreDomainInterface {
        self.page
    }

    /// The bell that the client rings.
    #[must_use]
    pub const fn bell(&self) -> &Bell {
        &self.bell
    }

    /// The value at `path`.
    #[must_use]
    pub fn value(&self, path: &str) -> Option<&[u8]> {
        self.nodes.get(&absolute(path)).map(Vec::as_slice)
    }

    /// Path and token of every watch, in the order in which they were set.
    #[must_use]
    pub fn watches(&self) -> &[(String, String)] {
        &self.watches
    }

    /// How many transactions are open.
    #[must_use]
    pub fn open_transactions(&self) -> usize {
        self.transactions.len()
    }

    /// The most transactions that were open at a time.
    #[must_use]
    pub const fn most_transactions(&self) -> usize {
        self.most_transactions
    }

    /// How many transactions were committed.
    #[must_use]
    pub const fn commits(&self) -> usize {
        self.commits
    }

    /// The requests since the start or the last restore.
    #[must_use]
    pub fn log(&self) -> &[Kind] {
        &self.log
    }

    /// How many requests there were since the start or the last restore.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.log.len()
    }

    /// The most requests that were waiting for a reply at a time.
    #[must_use]
    pub const fn most_open(&self) -> usize {
        self.most_open
    }
}

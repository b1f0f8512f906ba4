//! The fake xenstored: a tree, watches, transactions, and a list of ways to misbehave.
//!
//! It is strict about what it is sent: a request that does not have the shape that the real one wants is answered with
//! EINVAL, a payload too long ends the connection. Its conflicts are coarse: a transaction fails if anything at
//! all was changed since it began, which the real ones may do too.

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

/// `path` as an absolute one.
fn absolute(path: &str) -> String {
    if path.starts_with('/') || path.starts_with('@') { path.to_owned() } else { format!("{HOME}/{path}") }
}

fn parent(path: &str) -> &str {
    path.rfind('/').map_or("", |at| &path[..at])
}

fn is_below(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The strings of a payload, each of which must end in a NUL.
fn strings(payload: &[u8]) -> Option<Vec<&str>> {
    payload.strip_suffix(b"\0")?.split(|&byte| byte == 0).map(|string| str::from_utf8(string).ok()).collect()
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

    fn carry_out(&mut self, header: Header, payload: &[u8]) -> Result<Vec<u8>, &'static str> {
        let ok = Ok(b"OK\0".to_vec());
        let kind = Kind::from_raw(header.kind).ok_or("ENOSYS")?;
        match kind {
            Kind::Watch | Kind::Unwatch => {
                let [path, token] = strings(payload).ok_or("EINVAL")?[..] else { return Err("EINVAL") };
                let watch = (path.to_owned(), token.to_owned());
                let at = self.watches.iter().position(|known| *known == watch);
                match (kind, at) {
                    (Kind::Watch, Some(_)) => return Err("EEXIST"),
                    (Kind::Watch, None) => {
                        self.held.push((false, message(Kind::WatchEvent.raw(), 0, 0, payload)));
                        self.watches.push(watch);
                    }
                    (_, Some(at)) => drop(self.watches.remove(at)),
                    (_, None) => return Err("ENOENT"),
                }
                ok
            }
            Kind::TransactionStart if payload == b"\0" => {
                if header.tx_id != 0 {
                    return Err("EBUSY");
                }
                self.last_transaction += 1;
                let open = Transaction { nodes: self.nodes.clone(), changed: vec![], version: self.version };
                self.transactions.insert(self.last_transaction, open);
                self.most_transactions = self.most_transactions.max(self.transactions.len());
                Ok(format!("{}\0", self.last_transaction).into_bytes())
            }
            Kind::TransactionEnd => {
                let open = self.transactions.remove(&header.tx_id).ok_or("ENOENT")?;
                match payload {
                    b"F\0" => return ok,
                    b"T\0" => {}
                    _ => return Err("EINVAL"),
                }
                if let Some((path, value)) = self.intruders.pop_front() {
                    self.set(&path, &value);
                }
                if open.version != self.version {
                    return Err("EAGAIN");
                }
                self.commits += 1;
                self.nodes = open.nodes;
                for path in open.changed {
                    self.fire(&path);
                }
                ok
            }
            Kind::GetDomainPath => {
                let [domid] = strings(payload).ok_or("EINVAL")?[..] else { return Err("EINVAL") };
                Ok(format!("/local/domain/{domid}\0").into_bytes())
            }
            Kind::ResetWatches => {
                self.watches.clear();
                self.transactions.clear();
                ok
            }
            _ => self.on_node(kind, header.tx_id, payload),
        }
    }

    fn on_node(&mut self, kind: Kind, tx_id: u32, payload: &[u8]) -> Result<Vec<u8>, &'static str> {
        let end = payload.iter().position(|&byte| byte == 0).ok_or("EINVAL")?;
        let path = absolute(str::from_utf8(&payload[..end]).map_err(|_| "EINVAL")?);
        let rest = &payload[end + 1..];
        if path.ends_with('/') || (kind != Kind::Write && kind != Kind::DirectoryPart && !rest.is_empty()) {
            return Err("EINVAL");
        }
        let version = self.version;
        let nodes = match tx_id {
            0 => &mut self.nodes,
            id => &mut self.transactions.get_mut(&id).ok_or("ENOENT")?.nodes,
        };
        match kind {
            Kind::Read => return nodes.get(&path).cloned().ok_or("ENOENT"),
            Kind::Directory | Kind::DirectoryPart => {
                nodes.get(&path).ok_or("ENOENT")?;
                let below = nodes.keys().filter(|node| parent(node) == path && !node.is_empty());
                let list: Vec<u8> =
                    below.flat_map(|node| [&node.as_bytes()[path.len() + 1..], b"\0"].concat()).collect();
                return match kind {
                    Kind::Directory if list.len() > PAYLOAD_MAX => Err("E2BIG"),
                    Kind::Directory => Ok(list),
                    _ => part_of(&list, rest, version),
                };
            }
            Kind::Write => put(nodes, &path, rest),
            Kind::Mkdir if nodes.contains_key(&path) => return Ok(b"OK\0".to_vec()),
            Kind::Mkdir => put(nodes, &path, b""),
            Kind::Rm => {
                nodes.get(parent(&path)).ok_or("ENOENT")?;
                if !nodes.contains_key(&path) {
                    return Ok(b"OK\0".to_vec());
                }
                nodes.retain(|node, _| !is_below(node, &path));
            }
            _ => return Err("EINVAL"),
        }
        match self.transactions.get_mut(&tx_id) {
            Some(open) => open.changed.push(path),
            None => self.fire(&path),
        }
        Ok(b"OK\0".to_vec())
    }

    /// Something changed at the absolute `path`.
    fn fire(&mut self, path: &str) {
        self.version += 1;
        for (watched, token) in &self.watches {
            let top = absolute(watched);
            if is_below(path, &top) {
                let reported = format!("{watched}{}\0{token}\0", &path[top.len()..]);
                self.held.push((false, message(Kind::WatchEvent.raw(), 0, 0, reported.as_bytes())));
            }
        }
    }

    /// Somebody else writes.
    pub fn set(&mut self, path: &str, value: &[u8]) {
        let path = absolute(path);
        put(&mut self.nodes, &path, value);
        self.fire(&path);
        self.moving = true;
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

/// Sets `path`, and makes its parents.
fn put(nodes: &mut Nodes, path: &str, value: &[u8]) {
    let mut above = parent(path);
    while !above.is_empty() {
        nodes.entry(above.to_owned()).or_default();
        above = parent(above);
    }
    nodes.insert(path.to_owned(), value.to_vec());
}

/// The answer to DIRECTORY_PART: as much of `list` as fits from the offset in `rest` on, whole names only.
fn part_of(list: &[u8], rest: &[u8], version: u64) -> Result<Vec<u8>, &'static str> {
    let offset = rest.strip_suffix(b"\0").and_then(|digits| str::from_utf8(digits).ok()).ok_or("EINVAL")?;
    let offset: usize = offset.parse().map_err(|_| "EINVAL")?;
    let mut answer = format!("{version}\0").into_bytes();
    let left = list.get(offset..).unwrap_or(&[]);
    let mut taken = 0;
    for name in left.split_inclusive(|&byte| byte == 0) {
        if answer.len() + name.len() + 1 > PAYLOAD_MAX {
            break;
        }
        answer.extend_from_slice(name);
        taken += name.len();
    }
    if taken == left.len() {
        answer.push(0);
    }
    Ok(answer)
}

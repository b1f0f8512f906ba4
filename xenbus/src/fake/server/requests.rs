//! What the fake xenstored does with each kind of request: its tree, its transactions, and whom it tells of changes.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::{Fake, HOME, Nodes, Transaction, message};
use crate::wire::{Header, Kind, PAYLOAD_MAX};

impl Fake {
    pub(super) fn carry_out(&mut self, header: Header, payload: &[u8]) -> Result<Vec<u8>, &'static str> {
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
    pub(super) fn fire(&mut self, path: &str) {
        self.version += 1;
        for (watched, token) in &self.watches {
            let top = absolute(watched);
            if is_below(path, &top) {
                let reported = format!("{watched}{}\0{token}\0", &path[top.len()..]);
                self.held.push((false, message(Kind::WatchEvent.raw(), 0, 0, reported.as_bytes())));
            }
        }
    }
}

/// `path` as an absolute one.
pub(super) fn absolute(path: &str) -> String {
    if path.starts_with('/') || path.starts_with('@') { path.to_owned() } else { format!("{HOME}/{path}") }
}

fn parent(path: &str) -> &str {
    path.rfind('/').map_or("", |at| &path[..at])
}

pub(super) fn is_below(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The strings of a payload, each of which must end in a NUL.
fn strings(payload: &[u8]) -> Option<Vec<&str>> {
    payload.strip_suffix(b"\0")?.split(|&byte| byte == 0).map(|string| str::from_utf8(string).ok()).collect()
}

/// Sets `path`, and makes its parents.
pub(super) fn put(nodes: &mut Nodes, path: &str, value: &[u8]) {
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

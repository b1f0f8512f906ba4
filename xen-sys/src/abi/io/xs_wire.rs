//! io/xs_wire.h: xenstore's ring page and messages.
//!
//! Shared: the daemon writes the page at any time, so all of it is atomics; [`XsdSockmsg`] is plain, since a header is
//! copied out of the ring before it is looked at. Contexts: any.

use crate::errno::Errno;
use crate::primitive::sync::atomic::{AtomicU8, AtomicU32};
use crate::{array_of, const_unless_loom};

/// Control of the daemon.
pub const XS_CONTROL: u32 = 0;
/// List children.
pub const XS_DIRECTORY: u32 = 1;
/// Read a value.
pub const XS_READ: u32 = 2;
/// Read permissions.
pub const XS_GET_PERMS: u32 = 3;
/// Set a watch.
pub const XS_WATCH: u32 = 4;
/// Remove a watch.
pub const XS_UNWATCH: u32 = 5;
/// Begin a transaction.
pub const XS_TRANSACTION_START: u32 = 6;
/// End a transaction.
pub const XS_TRANSACTION_END: u32 = 7;
/// Toolstack: introduce a domain.
pub const XS_INTRODUCE: u32 = 8;
/// Toolstack: release a domain.
pub const XS_RELEASE: u32 = 9;
/// A domain's home.
pub const XS_GET_DOMAIN_PATH: u32 = 10;
/// Write a value.
pub const XS_WRITE: u32 = 11;
/// Make a node.
pub const XS_MKDIR: u32 = 12;
/// Remove a node.
pub const XS_RM: u32 = 13;
/// Set permissions.
pub const XS_SET_PERMS: u32 = 14;
/// From the daemon: a watch has fired.
pub const XS_WATCH_EVENT: u32 = 15;
/// From the daemon: the request failed; the payload is an error's name.
pub const XS_ERROR: u32 = 16;
/// Is a domain introduced?
pub const XS_IS_DOMAIN_INTRODUCED: u32 = 17;
/// Toolstack: a domain resumes.
pub const XS_RESUME: u32 = 18;
/// Toolstack: a domain serves another.
pub const XS_SET_TARGET: u32 = 19;
/// Drop the caller's watches and transactions.
pub const XS_RESET_WATCHES: u32 = 21;
/// List children, in parts.
pub const XS_DIRECTORY_PART: u32 = 22;
/// Number of types.
pub const XS_TYPE_COUNT: u32 = 23;
/// Never a type.
pub const XS_INVALID: u32 = 0xffff;

/// In a watch event: which string is the path.
pub const XS_WATCH_PATH: u32 = 0;
/// In a watch event: which string is the token.
pub const XS_WATCH_TOKEN: u32 = 1;

/// Bytes of each ring.
pub const XENSTORE_RING_SIZE: u32 = 1024;
/// Longest payload; a longer one ends the connection for good.
pub const XENSTORE_PAYLOAD_MAX: u32 = 4096;
/// Longest absolute path.
pub const XENSTORE_ABS_PATH_MAX: u32 = 3072;
/// Longest relative path.
pub const XENSTORE_REL_PATH_MAX: u32 = 2048;

/// In `server_features`: the guest may reconnect.
pub const XENSTORE_SERVER_FEATURE_RECONNECTION: u32 = 1;
/// In `server_features`: `error` is there.
pub const XENSTORE_SERVER_FEATURE_ERROR: u32 = 2;
/// In `connection`: the steady state.
pub const XENSTORE_CONNECTED: u32 = 0;
/// In `connection`: reconnecting.
pub const XENSTORE_RECONNECT: u32 = 1;
/// In `error`: none.
pub const XENSTORE_ERROR_NONE: u32 = 0;
/// In `error`: communication.
pub const XENSTORE_ERROR_COMM: u32 = 1;
/// In `error`: bad index.
pub const XENSTORE_ERROR_RINGIDX: u32 = 2;
/// In `error`: payload too long.
pub const XENSTORE_ERROR_PROTO: u32 = 3;

/// The errors that the header lets the daemon name, in its order. oxenstored has more ("EQUOTA"), so an unknown name
/// must stay survivable.
pub const XSD_ERRORS: [(&str, Errno); 16] = [
    ("EINVAL", Errno::EINVAL),
    ("EACCES", Errno::EACCES),
    ("EEXIST", Errno::EEXIST),
    ("EISDIR", Errno::EISDIR),
    ("ENOENT", Errno::ENOENT),
    ("ENOMEM", Errno::ENOMEM),
    ("ENOSPC", Errno::ENOSPC),
    ("EIO", Errno::EIO),
    ("ENOTEMPTY", Errno::ENOTEMPTY),
    ("ENOSYS", Errno::ENOSYS),
    ("EROFS", Errno::EROFS),
    ("EBUSY", Errno::EBUSY),
    ("EAGAIN", Errno::EAGAIN),
    ("EISCONN", Errno::EISCONN),
    ("E2BIG", Errno::E2BIG),
    ("EPERM", Errno::EPERM),
];

/// Header of every message in both directions.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct XsdSockmsg {
    /// `XS_*`.
    pub r#type: u32,
    /// Chosen by the guest, repeated in the reply.
    pub req_id: u32,
    /// The transaction; 0: none.
    pub tx_id: u32,
    /// Bytes of payload that follow.
    pub len: u32,
}

/// Xenstore's page. Shared. Indices run freely and need not start at 0.
#[repr(C)]
#[derive(Debug)]
pub struct XenstoreDomainInterface {
    /// Bytes to the daemon.
    pub req: [AtomicU8; XENSTORE_RING_SIZE as usize],
    /// Bytes from the daemon.
    pub rsp: [AtomicU8; XENSTORE_RING_SIZE as usize],
    /// The daemon has read up to here.
    pub req_cons: AtomicU32,
    /// The guest has written up to here.
    pub req_prod: AtomicU32,
    /// The guest has read up to here.
    pub rsp_cons: AtomicU32,
    /// The daemon has written up to here.
    pub rsp_prod: AtomicU32,
    /// `XENSTORE_SERVER_FEATURE_*`.
    pub server_features: AtomicU32,
    /// `XENSTORE_CONNECTED` or `XENSTORE_RECONNECT`.
    pub connection: AtomicU32,
    /// `XENSTORE_ERROR_*`.
    pub error: AtomicU32,
}

impl XenstoreDomainInterface {
    const_unless_loom! {
        /// All zero: both rings empty, connected. About 2 KiB. Under loom far more: call it on a thread that
        /// `loom::thread::Builder` gave a larger stack.
        #[expect(clippy::new_without_default, reason = "a page of the daemon's has no default")]
        pub fn new() -> Self {
            Self {
                req: array_of!(AtomicU8::new(0)),
                rsp: array_of!(AtomicU8::new(0)),
                req_cons: AtomicU32::new(0),
                req_prod: AtomicU32::new(0),
                rsp_cons: AtomicU32::new(0),
                rsp_prod: AtomicU32::new(0),
                server_features: AtomicU32::new(0),
                connection: AtomicU32::new(0),
                error: AtomicU32::new(0),
            }
        }
    }
}

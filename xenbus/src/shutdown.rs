//! `control/shutdown`: how the toolstack asks a domain to end, to restart, or to suspend.
//!
//! Logic over the client, for one task. The toolstack writes a word and waits 60 s for any other value; it takes an
//! unanswered request back in a transaction of its own. So we take it in a transaction too: either we saw it and it is
//! answered, exactly once, or it was withdrawn and we never saw it. Turned down: read, then write; between the two
//! a withdrawal, or a second request, would be answered unseen.
//!
//! Source: xen/docs/misc/xenstore-paths.pandoc, tools/libs/light/libxl_domain.c (libxl__domain_pvcontrol).

use crate::error::{StoreError, Text};
use crate::store::Store;
use core::fmt;
use xen_sys::Errno;

/// The node, relative to the domain's home. Watch it, and call [`take_request`] at every change.
pub const NODE: &str = "control/shutdown";

/// The nodes by which we say what we take; a restore clears them.
const FEATURES: [&str; 3] = ["control/feature-poweroff", "control/feature-reboot", "control/feature-suspend"];

/// What the toolstack asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Request {
    /// End.
    Poweroff,
    /// End as for [`Request::Poweroff`]; the word is kept for the console.
    Halt,
    /// End, and be started again.
    Reboot,
    /// Suspend.
    Suspend,
    /// Something that we do not know; it has been acknowledged, and is to be named.
    Unknown(Text),
}

impl Request {
    /// Reads a value of the node; `None` is idle. Words are taken exactly: no spaces, no other case.
    pub fn parse(value: &[u8]) -> Option<Self> {
        Some(match value {
            b"" => return None,
            b"poweroff" => Self::Poweroff,
            b"halt" => Self::Halt,
            b"reboot" => Self::Reboot,
            b"suspend" => Self::Suspend,
            other => Self::Unknown(Text::new(other)),
        })
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Poweroff => f.write_str("poweroff"),
            Self::Halt => f.write_str("halt"),
            Self::Reboot => f.write_str("reboot"),
            Self::Suspend => f.write_str("suspend"),
            Self::Unknown(text) => write!(f, "{text}"),
        }
    }
}

/// Takes the request that stands at the node, if any, and acknowledges it. `None` if there is none, or it was withdrawn
/// while we looked.
/// # Errors
/// As for a transaction. The request is then not acknowledged, except if the ring broke during the commit.
pub async fn take_request(store: &Store) -> Result<Option<Request>, StoreError> {
    store
        .transaction(async |tx| {
            let value = match tx.read_bytes(NODE).await {
                Ok(value) => value,
                Err(error) if error.is(Errno::ENOENT) => return Ok(None),
                Err(error) => return Err(error),
            };
            let request = Request::parse(&value);
            if request.is_some() {
                tx.write(NODE, "").await?;
            }
            Ok(request)
        })
        .await
}

/// Says which requests we take. Again after every restore.
/// # Errors
/// As for a write; those before the failing one are written.
pub async fn advertise(store: &Store) -> Result<(), StoreError> {
    for node in FEATURES {
        store.write(node, "1").await?;
    }
    Ok(())
}

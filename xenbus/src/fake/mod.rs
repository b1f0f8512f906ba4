//! A xenstored on the other side of the ring page, and an executor that sees lost wake-ups. Host tests only.
//!
//! Owns nothing of the kernel. Everything runs stepwise in one thread, so that a failing test fails the same way again:
//! tasks are polled only if they were woken, xenstored moves only if its bell was rung (or it has more of its own to
//! do), and when nobody moves and the future is not done, that is "stuck", not a hang. Turned down: a thread for the
//! fake in all tests. One test has it (`tests/threads.rs`); in all others it would only make failures rare.

mod exec;
mod server;

pub use exec::{block_on, poll_once, run_all, settle, try_block_on};
pub use server::{Fake, HOME, Twist};

use crate::store::{Doorbell, Store};
use alloc::boxed::Box;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::vec::Vec;
use xen_sys::abi::io::xs_wire::XenstoreDomainInterface;

/// Keeps every page reachable: a store's page lives for ever, and Miri counts what nobody can reach as leaked.
static PAGES: Mutex<Vec<&'static XenstoreDomainInterface>> = Mutex::new(Vec::new());

/// The fake's end of the bell.
#[derive(Clone, Debug, Default)]
pub struct Bell {
    rung: Arc<AtomicBool>,
    count: Arc<AtomicU32>,
}

impl Bell {
    /// True if it was rung since the last call.
    #[must_use]
    pub fn take(&self) -> bool {
        // ORDERING: AcqRel, pairs with the swap in `notify`: what was put into the ring before is seen after.
        self.rung.swap(false, Ordering::AcqRel)
    }

    /// How often it was rung.
    #[must_use]
    pub fn count(&self) -> u32 {
        // ORDERING: Relaxed, statistic only.
        self.count.load(Ordering::Relaxed)
    }
}

impl Doorbell for Bell {
    fn notify(&self) {
        // ORDERING: Relaxed, statistic only.
        self.count.fetch_add(1, Ordering::Relaxed);
        // ORDERING: AcqRel, pairs with the swap in `take`.
        self.rung.swap(true, Ordering::AcqRel);
    }
}

/// A store and its xenstored, over a new page whose four indices start at `start`.
#[must_use]
pub fn pair(start: u32) -> (Store, Fake) {
    let page: &'static XenstoreDomainInterface = Box::leak(Box::new(XenstoreDomainInterface::new()));
    PAGES.lock().expect("no test panics while holding it").push(page);
    for index in [&page.req_cons, &page.req_prod, &page.rsp_cons, &page.rsp_prod] {
        // ORDERING: Relaxed, nobody else has the page yet.
        index.store(start, Ordering::Relaxed);
    }
    let bell = Bell::default();
    let fake = Fake::new(page, bell.clone());
    (Store::new(page, Box::new(bell)), fake)
}

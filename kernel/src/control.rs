//! What the toolstack wants of this domain: `control/shutdown`, and what we publish under `data/stasis/`.
//!
//! One task on vcpu 0, so requests are handled one after the other: a second suspend request that comes during a suspend is
//! answered after it, and each exactly once.

use alloc::boxed::Box;
use core::fmt;

use spin::Once;
use xen_sys::abi::io::xs_wire::XenstoreDomainInterface;
use xen_sys::abi::sched::{SHUTDOWN_poweroff, SHUTDOWN_reboot};
use xen_sys::hypercall::{evtchn, sched};
use xen_sys::primitive::sync::atomic::{AtomicU32, Ordering};
use xenbus::shutdown::{self, Request};
use xenbus::{Change, Doorbell, Store, StoreError};

use crate::{console, executor, panic, suspend, timer};

/// How long a failed exchange with xenstored is let rest before it is tried again.
const RETRY_NS: u64 = 1_000_000_000;

static STORE: Once<Store> = Once::new();
static PAGE: Once<&'static XenstoreDomainInterface> = Once::new();
/// The store's port. Written by vcpu 0, at boot and while all others are parked.
static PORT: AtomicU32 = AtomicU32::new(0);

struct Bell;

impl Doorbell for Bell {
    fn notify(&self) {
        // ORDERING: Relaxed, one word; a restore changes it while nobody else runs.
        // xenstored cannot be told that its port is gone; a restore, which mends that, is all that can take the port away.
        let _ = evtchn::send(PORT.load(Ordering::Relaxed));
    }
}

/// The port of the store, at boot and after a restore.
pub(crate) fn set_port(port: u32) {
    // ORDERING: Relaxed, see `Bell`.
    PORT.store(port, Ordering::Relaxed);
}

/// Marks the ring page dirty, just before a suspend: what the daemon writes through its own mapping is not logged.
/// Context: task, while the store is quiet.
pub(crate) fn dirty_ring() {
    if let Some(page) = PAGE.get() {
        // ORDERING: Relaxed, the value does not change, and nobody else of ours writes it while the store is quiet.
        page.req_prod.store(page.req_prod.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// xenstored has rung. Context: upcall.
pub(crate) fn on_event() {
    if let Some(store) = STORE.get() {
        store.on_event();
    }
}

/// Starts the store's tasks over its ring page. Context: vcpu 0.
pub(crate) fn start(page: &'static XenstoreDomainInterface) {
    PAGE.call_once(|| page);
    let store = STORE.call_once(|| Store::new(page, Box::new(Bell)));
    let pump = async move { match store.pump().await {} };
    executor::spawn_here(pump).expect("the first tasks of a CPU");
    executor::spawn_here(serve(store)).expect("the first tasks of a CPU");
}

/// Writes `facts` under `data/stasis/`. A store that does not take them is named and does not stop anything.
pub(crate) async fn publish(facts: &[(&str, u64)]) {
    let Some(store) = STORE.get() else { return };
    if let Err(error) = xenbus::data::publish(store, facts).await {
        complain("publish", &error);
    }
}

fn complain(what: &str, error: &dyn fmt::Display) {
    crate::note!(Warn, "xenstore: {what}: {error}");
}

async fn serve(store: &'static Store) {
    loop {
        let Err(error) = serve_until_error(store).await;
        complain("control/shutdown", &error);
        timer::sleep(RETRY_NS).await;
    }
}

async fn serve_until_error(store: &'static Store) -> Result<core::convert::Infallible, StoreError> {
    store.reset_watches().await?;
    shutdown::advertise(store).await?;
    let mut watch = store.watch(shutdown::NODE, "shutdown").await?;
    loop {
        if watch.changed().await? == Change::Everything {
            // A restored domain starts with fresh nodes.
            shutdown::advertise(store).await?;
        }
        if let Some(request) = shutdown::take_request(store).await? {
            obey(store, request).await;
        }
    }
}

async fn obey(store: &'static Store, request: Request) {
    match request {
        Request::Poweroff | Request::Halt => power_off(if request == Request::Halt { "halt" } else { "poweroff" }),
        Request::Reboot => reboot(),
        Request::Suspend => suspend::serve(store, "xenstore").await,
        Request::Unknown(text) => {
            crate::say!("control-unknown", node = shutdown::NODE, value = Lossy(text.as_bytes()));
        }
    }
}

/// Bytes from outside as text, so that a word stays readable in any language; what is no UTF-8 shows as U+FFFD. The console's lines
/// quote what has to be quoted.
struct Lossy<'a>(&'a [u8]);

impl fmt::Display for Lossy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            f.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                f.write_str("\u{fffd}")?;
            }
        }
        Ok(())
    }
}

/// Ends the domain. Context: task.
pub(crate) fn power_off(reason: &str) -> ! {
    end(reason, SHUTDOWN_poweroff)
}

fn reboot() -> ! {
    end("reboot", SHUTDOWN_reboot)
}

fn end(word: &str, reason: u32) -> ! {
    panic::say_shutdown(word);
    // What the daemon has not taken within its time it never will.
    let _ = console::drain();
    match sched::shutdown(reason) {
        Ok(_) => unreachable!("Xen lets a domain that shuts down run on"),
        Err(error) => panic!("SCHEDOP_shutdown({reason}): {error}"),
    }
}

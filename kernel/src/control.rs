//! What the toolstack wants of this domain: `control/shutdown`, and what we publish under `data/stasis/`. `control/sysrq` has
//! a task of its own, in `sysrq`.
//!
//! One task on vcpu 0, so requests are handled one after the other, those of the suspend event channel (`suspend_port`) too: a
//! second suspend request that comes during a suspend is answered after it, and each exactly once.

use alloc::boxed::Box;
use core::fmt;
use core::future::Future;
use core::pin::pin;

use boot::SuspendVia;
use spin::Once;
use xen_sys::abi::io::xs_wire::XenstoreDomainInterface;
use xen_sys::abi::sched::{SHUTDOWN_poweroff, SHUTDOWN_reboot};
use xen_sys::hypercall::sched;
use xen_sys::primitive::sync::atomic::Ordering;
use xenbus::shutdown::{self, Request};
use xenbus::{Change, Doorbell, Store, StoreError};

use crate::freezer::Freezer;
use crate::wait::{First, first_of};
use crate::{console, devices, events, executor, panic, suspend, suspend_port, sysrq, time, timer, workload};

/// How long a failed exchange with xenstored is let rest before it is tried again.
pub(crate) const RETRY_NS: u64 = 1_000_000_000;
/// How long xenstored may take to answer. A toolstack gives up on a guest that takes as long to acknowledge a request.
const ANSWER_NS: u64 = 60_000_000_000;

/// How long tasks are kept frozen for a suspend that has been foreseen and not yet taken.
const FORESEEN_NS: u64 = 2_000_000_000;

static STORE: Once<Store> = Once::new();
static PAGE: Once<&'static XenstoreDomainInterface> = Once::new();

struct Bell;

impl Doorbell for Bell {
    fn notify(&self) {
        // Without a port, after a restore, nothing is lost: xenstored is told once it is bound. Stale and refused sends are
        // counted there.
        if let Some(port) = devices::store_port() {
            let _ = events::get().send(port);
        }
    }
}

/// xenstored can be told from now on, and may have something to tell. Context: vcpu 0.
pub(crate) fn port_is_bound() {
    Bell.notify();
    on_event();
}

/// Marks the ring page dirty, just before a suspend: what the daemon writes through its own mapping is not logged.
/// Context: task, while the store is quiet.
pub(crate) fn dirty_ring() {
    if let Some(page) = PAGE.get() {
        // ORDERING: Relaxed, the value does not change, and nobody else of ours writes it while the store is quiet.
        page.req_prod.store(page.req_prod.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// What xenstored has written of the ring's indices, as one number; 0 before the store is started. Context: task.
pub(crate) fn daemon_indices() -> u64 {
    PAGE.get().map_or(0, |page| {
        // ORDERING: Relaxed both, to be compared only.
        let [taken, sent] = [&page.req_cons, &page.rsp_prod].map(|index| index.load(Ordering::Relaxed));
        u64::from(taken) << 32 | u64::from(sent)
    })
}

/// xenstored has rung. Context: upcall.
pub(crate) fn on_event() {
    if let Some(store) = STORE.get() {
        store.on_event();
    }
}

/// Shows the store's counts and what went wrong last, for a dump. Context: any, since it waits for nothing.
pub(crate) fn dump() {
    match STORE.get().map(Store::diagnosis) {
        Some(Some(diagnosis)) => {
            let mut line = crate::logfmt::Line::new("debug-xenstore");
            line.fields(format_args!("{diagnosis}"));
            console::print(&line);
        }
        Some(None) => crate::say!("debug-xenstore", state = "in-use"),
        None => {}
    }
}

/// Opens the store over its ring page. Context: a task on vcpu 0, once; nothing is asked of the store before this is over.
pub(crate) async fn open(page: &'static XenstoreDomainInterface) -> &'static Store {
    PAGE.call_once(|| page);
    let store = STORE.call_once(|| Store::new(page, Box::new(Bell)));
    let pump = async move { match store.pump().await {} };
    executor::spawn_own(pump);
    // Once, before any watch is set: later it would take other tasks' away, and is refused. A store that does not answer now
    // keeps nobody from starting: there is a boot loader's watch left at worst.
    if let Err(error) = answered(store.reset_watches()).await {
        complain("reset-watches", &error);
    }
    store
}

/// Serves what the toolstack asks for from now on. Requests to suspend are taken from `control/shutdown`, and from the suspend event
/// channel too if `via` says so. Context: vcpu 0.
pub(crate) fn start(store: &'static Store, via: SuspendVia) {
    executor::spawn_own(sysrq::serve(store));
    executor::spawn_own(serve(store, via));
}

/// Writes `facts` under `data/stasis/`. A store that does not take them is named and does not stop anything.
pub(crate) async fn publish(facts: &[(&str, u64)]) {
    let Some(store) = STORE.get() else { return };
    if let Err(error) = answered(xenbus::data::publish(store, facts)).await {
        complain("publish", &error);
    }
}

/// Why an exchange with xenstored came to nothing.
pub(crate) enum Failed {
    Store(StoreError),
    NoAnswer,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failed::Store(error) => error.fmt(f),
            Failed::NoAnswer => write!(f, "no answer within {} s; is xenstored alive?", ANSWER_NS / 1_000_000_000),
        }
    }
}

/// What xenstored answers, unless a reply is lost: that may not silence this domain for ever.
pub(crate) async fn answered<T>(exchange: impl Future<Output = Result<T, StoreError>>) -> Result<T, Failed> {
    match timer::within(ANSWER_NS, exchange).await {
        Ok(answer) => answer.map_err(Failed::Store),
        Err(timer::TimeIsUp) => Err(Failed::NoAnswer),
    }
}

/// Puts on the log what has failed. Context: task.
pub(crate) fn complain(what: &str, error: &dyn fmt::Display) {
    crate::note!(Warn, "xenstore: {what}: {error}");
}

async fn serve(store: &'static Store, via: SuspendVia) {
    loop {
        let Err(error) = serve_until_error(store, via).await;
        complain("control/shutdown", &error);
        timer::sleep(RETRY_NS).await;
    }
}

async fn serve_until_error(store: &'static Store, via: SuspendVia) -> Result<core::convert::Infallible, Failed> {
    advertise(store, via).await;
    let mut watch = answered(store.watch(shutdown::NODE, "shutdown")).await?;
    let mut events = Events::NEW;
    loop {
        // Takes as long as it takes: nobody has to want anything.
        let change = match first_of(watch.changed(), suspend_port::rang()).await {
            First::One(change) => change.map_err(Failed::Store)?,
            First::Other(rang_ns) => {
                suspend_port::serve(store, rang_ns).await;
                continue;
            }
        };
        let seen_ns = time::now_ns();
        if change == Change::Everything {
            // A restored domain starts with fresh nodes.
            advertise(store, via).await;
            events = Events::NEW;
        }
        let freezer = Freezer::new();
        let (request, wrote) = take(store, &freezer, events.tell_of_others()).await?;
        events.note(request.is_some(), wrote);
        if let Some(request) = request {
            obey(store, request, seen_ns, freezer).await;
        }
    }
}

/// Whether an event of `control/shutdown` tells that somebody else has written there.
struct Events {
    /// We may have written since the last one, and be told of it.
    is_own: bool,
    /// One that was another's told of nothing that we serve. Until somebody asks for something again, each is looked at before anything
    /// is done about it: who writes there without end stops no task, and has us write nothing.
    is_idle: bool,
}

impl Events {
    /// The first event of a watch tells of nothing.
    const NEW: Events = Events { is_own: true, is_idle: false };

    fn tell_of_others(&self) -> bool {
        !self.is_own && !self.is_idle
    }

    /// One has been handled: there was a request, or none, and we `wrote`, or did not.
    fn note(&mut self, was_asked: bool, wrote: bool) {
        self.is_idle = !was_asked && (self.tell_of_others() || self.is_idle);
        self.is_own = wrote;
    }
}

/// Takes a request; and whether the node may have been written to for that. Where others are known to have written there, everything is
/// frozen as soon as it is tried at once; else when it can be known that the domain is to be suspended. Thaws where it is not taken in time.
async fn take(store: &Store, freezer: &Freezer, others_wrote: bool) -> Result<(Option<Request>, bool), Failed> {
    let foresee = |request: &Request| {
        if is_served(request) {
            freezer.freeze();
        }
    };
    let begun = || {
        if !suspend_port::is_subscribed() {
            freezer.freeze();
        }
    };
    let mut taken = pin!(answered(async {
        if others_wrote && let Some(taken) = shutdown::take_request_at_once(store, begun).await {
            return taken.map(|request| (request, true));
        }
        shutdown::take_request(store, foresee).await.map(|request| (request, request.is_some()))
    }));
    loop {
        match timer::within(FORESEEN_NS, taken.as_mut()).await {
            Ok(answer) => return answer,
            Err(timer::TimeIsUp) => freezer.thaw(),
        }
    }
}

/// Best effort: `xl` of 4.17 reads none of `control/feature-*`, and a request that comes anyhow is served; without the suspend
/// event channel's port it asks through `control/shutdown`.
async fn advertise(store: &Store, via: SuspendVia) {
    if let Err(error) = answered(shutdown::advertise(store)).await {
        complain("control/feature-*", &error);
    }
    if via == SuspendVia::Evtchn {
        suspend_port::offer(store).await;
    }
}

/// Whether the domain is suspended for it.
fn is_served(request: &Request) -> bool {
    *request == Request::Suspend && !suspend_port::is_subscribed()
}

/// Does what is asked for; it was seen at guest time `seen_ns`.
async fn obey(store: &'static Store, request: Request, seen_ns: u64, freezer: Freezer) {
    if is_served(&request) {
        return suspend::serve(store, "xenstore", seen_ns, freezer).await;
    }
    // A suspend may have been foreseen, and what follows waits for tasks.
    drop(freezer);
    match request {
        Request::Poweroff | Request::Halt => {
            workload::end().await;
            power_off(if request == Request::Halt { "halt" } else { "poweroff" })
        }
        Request::Reboot => reboot(),
        Request::Suspend => suspend_port::refuse(store).await,
        Request::Unknown(text) => {
            crate::say!("control-unknown", node = shutdown::NODE, value = Lossy(text.as_bytes()));
        }
    }
}

/// Bytes from outside as text, so that a word stays readable in any language; what is no UTF-8 shows as U+FFFD. The console's lines
/// quote what has to be quoted.
pub(crate) struct Lossy<'a>(pub(crate) &'a [u8]);

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
    console::drain();
    match sched::shutdown(reason) {
        Ok(_) => unreachable!("Xen lets a domain that shuts down run on"),
        Err(error) => panic!("SCHEDOP_shutdown({reason}): {error}"),
    }
}

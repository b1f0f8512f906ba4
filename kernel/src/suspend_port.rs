//! The suspend event channel, `suspend=evtchn`: a port that the toolstack rings to have this domain suspended.
//!
//! Owns the port: allocated for dom0, which is where the toolstack is taken to be, and offered in `device/suspend/event-channel`;
//! allocated anew in every new life of the domain, and never closed. What a ring leads to is the same as what `control/shutdown`
//! leads to, in the same task. The handler runs in the upcall on vcpu 0, all else in the control task.
//!
//! It spares the toolstack its turns through xenstored. It is not the default, for what it costs with xl of 4.17
//! (tools/libs/light/libxl_dom_suspend.c, xen/common/domain.c):
//!
//! | hazard | what is done about it here |
//! |---|---|
//! | the node names a port that cannot be bound: every save fails at once | it is written once the port is bound here, and the port lives as long as the domain; a restore's empty node has the toolstack use `control/shutdown` |
//! | a ring is not acknowledged and cannot be taken back: a guest that suspends after the toolstack has given up, after 60 s, stays suspended | a ring is refused when nobody has the port's other end any more, which is closed by who gives up; and when it was not seen to at once ([`LATE_NS`]), as the suspend's own limits are 50 s together |
//! | Xen goes on telling only the port's other end that the domain is suspended, also when that toolstack has gone: a request by `control/shutdown` is then not seen to be met, for 60 s, and a migration leaves the guest suspended | the node is never taken back; once the port has rung, requests by `control/shutdown` are refused, and the node written again: somebody must have emptied it |
//! | a ring of a life before the restore | forgotten with its port |
//! | rings without end | the port is masked from a ring on until the task has seen it |
//! | `xl migrate` takes any error after the suspend for a guest that did not answer, and leaves it suspended | nothing can be: the guest does not run |
//!
//! Suspend: the port is *kept* in the same domain, where a toolstack that leaves gives it back to be bound again, and *rebuilt* in a
//! new one. Turned down: a task of its own for rings, beside that of `control/shutdown`; two suspends would have to wait for
//! each other.

use alloc::sync::Arc;

use evtchn::{Action, EndOfEvent, PortNr};
use percpu::CpuId;
use spin::Once;
use xen_sys::abi::xen::{DOMID_SELF, domid_t};
use xen_sys::hypercall::evtchn::{self as hypercall, BoundTo};
use xen_sys::primitive::sync::atomic::{AtomicU64, Ordering};
use xenbus::{Store, suspend_channel};

use crate::control::{answered, complain};
use crate::freezer::Freezer;
use crate::wait::Flag;
use crate::{events, suspend, time};

/// Where the toolstack is.
const TOOLSTACK: domid_t = 0;

/// The number by which dumps show the port, after the console's and the store's.
const CONTEXT: usize = 2;

/// How old a ring may be that is answered. A toolstack waits 60 s, and a suspend gives up by itself within 50.
const LATE_NS: u64 = 5_000_000_000;

static ACTION: Once<Arc<Action>> = Once::new();
static RANG: Flag = Flag::new();
/// Guest time of the ring that was not yet seen to.
static RANG_NS: AtomicU64 = AtomicU64::new(0);
/// The ring count of the port's action when its port was allocated. Written by the control task.
static COUNT_AT_START: AtomicU64 = AtomicU64::new(0);

fn action() -> &'static Arc<Action> {
    ACTION.call_once(|| {
        Action::new(EndOfEvent::Late, CONTEXT, |_, _| {
            // ORDERING: Relaxed, published by the flag.
            RANG_NS.store(time::now_ns(), Ordering::Relaxed);
            RANG.set();
        })
    })
}

/// Allocates the port, where this life of the domain has none yet, and writes its number where the toolstack looks for it. What fails
/// is named; the toolstack then asks through `control/shutdown`. Context: the control task.
pub(crate) async fn offer(store: &Store) {
    if action().port().is_none()
        && let Err(why) = allocate()
    {
        crate::note!(Warn, "suspend=evtchn: {why}");
    }
    let Some(port) = action().port() else { return };
    match answered(suspend_channel::offer(store, port.nr.get())).await {
        Ok(()) => crate::say!("suspend-port", port = port.nr),
        Err(error) => complain(suspend_channel::NODE, &error),
    }
}

fn allocate() -> Result<(), alloc::string::String> {
    // A ring of an earlier life was for that one.
    RANG.take();
    // ORDERING: Relaxed, this task's own.
    COUNT_AT_START.store(action().count(), Ordering::Relaxed);
    let port = hypercall::alloc_unbound(DOMID_SELF, TOOLSTACK)
        .map_err(|errno| alloc::format!("EVTCHNOP_alloc_unbound: {errno}"))?;
    let bound = PortNr::new(port)
        .ok_or_else(|| alloc::format!("port {port} is out of range"))
        // The binding is dropped: the port stays bound until the domain is saved.
        .and_then(|nr| {
            events::get().bind_device(nr, CpuId::BOOT, action()).map_err(|error| alloc::format!("port {nr}: {error}"))
        });
    bound.map(drop).inspect_err(|_| {
        // Nobody has heard of it. If it stays open it costs a port.
        let _ = hypercall::close(port);
    })
}

/// Whether a toolstack has used the port in this life of the domain, so that Xen tells nobody else of a suspend.
pub(crate) fn is_subscribed() -> bool {
    // ORDERING: Relaxed, this task's own.
    ACTION
        .get()
        .is_some_and(|action| action.port().is_some() && action.count() != COUNT_AT_START.load(Ordering::Relaxed))
}

/// Waits for a ring, and says at which guest time it came. Without `suspend=evtchn` none does. Context: the control task.
pub(crate) async fn rang() -> u64 {
    RANG.wait().await;
    // ORDERING: Relaxed, shown by the flag.
    let rang_ns = RANG_NS.load(Ordering::Relaxed);
    if let Some(action) = ACTION.get() {
        // From here on the next one is heard, with its own time.
        events::get().end_of_event(action, percpu::vcpu_info());
    }
    rang_ns
}

/// Answers a ring that came at guest time `rang_ns`. Context: the control task.
pub(crate) async fn serve(store: &'static Store, rang_ns: u64) {
    let refused = if !is_bound() {
        "toolstack-is-gone"
    } else if time::now_ns().saturating_sub(rang_ns) > LATE_NS {
        "request-too-old"
    } else {
        return suspend::serve(store, "evtchn", rang_ns, Freezer::new()).await;
    };
    crate::say!("suspend-request", via = "evtchn");
    crate::say!("suspend-abort", reason = refused, missing = "none");
}

/// Whether somebody has the other end of the port.
fn is_bound() -> bool {
    let Some(port) = action().port() else { return false };
    let status = hypercall::status(DOMID_SELF, port.nr.get());
    matches!(status.map(|status| status.bound_to), Ok(BoundTo::Interdomain { .. }))
}

/// Refuses a request that came through `control/shutdown` although the port is in use. Context: the control task.
pub(crate) async fn refuse(store: &Store) {
    crate::say!("suspend-request", via = "xenstore");
    crate::say!("suspend-abort", reason = "suspend-port-is-subscribed", missing = "none");
    offer(store).await;
}

//! `bare-ipi`: what `ipi-call` does with nothing but the send, an upcall that sets a flag, and the way back. The floor that a call
//! can be measured by: what Xen takes, and what no kernel can leave out.
//!
//! The other vcpu registers a callback of the bench's own (`bare_stubs.rs`) and puts the kernel's back afterwards. The port is
//! an IPI of its own, which the kernel's tables do not know. What else comes to that vcpu meanwhile stays pending, and is taken
//! when the kernel's callback is back.

use alloc::format;
use alloc::string::String;
use core::ptr;

use evtchn::{AbiKind, PortNr};
use percpu::{CpuId, Masked};
use xen_sys::abi::callback::{CALLBACKF_mask_events, CALLBACKTYPE_event};
use xen_sys::abi::event_channel::{EVTCHN_FIFO_LINKED, EVTCHN_FIFO_MASKED, EVTCHN_FIFO_PENDING};
use xen_sys::abi::xen::SharedInfo;
use xen_sys::hypercall::traps::callback_register;
use xen_sys::hypercall::{Batch, evtchn as hypercall};
use xen_sys::primitive::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::bare_stubs::{self, PLACES, SEEN};
use super::others::{self, State};
use super::report::{Field, Report};
use crate::time::tsc;
use crate::{events, executor, memory, timer, traps};

/// FIFO: the queue of the port. Nobody else's, as all other ports have the default.
const PRIORITY: u32 = 8;

/// The other vcpu has the bench's callback. Written by it.
static SERVES: AtomicBool = AtomicBool::new(false);
/// It is to put the kernel's back.
static STOP: others::Apart<AtomicBool> = others::Apart(AtomicBool::new(false));

/// See the head of this file.
pub(super) async fn bare_ipi(report: &mut Report) {
    for (state, n) in [(State::Spin, 2000), (State::Idle, 500)] {
        let variant: [Field<'_>; 1] = [("other", &state)];
        let Some(cpu) = others::one() else {
            report.skip(&variant, &others::NONE);
            continue;
        };
        let port = match BarePort::open(cpu) {
            Ok(port) => port,
            Err(why) => {
                report.skip(&variant, &why);
                continue;
            }
        };
        STOP.0.store(false, Ordering::Relaxed); // ORDERING: Relaxed, published by the spawn.
        executor::spawn_on(cpu, async move { serve(state) });
        await_serving(true).await;
        port.unmask();
        report.measure(&variant, n, || {
            if state == State::Idle {
                others::await_blocked(cpu);
            }
            SEEN.0.store(0, Ordering::Relaxed); // ORDERING: Relaxed, the hypercall is behind it, and there is nothing else to see.
            let before = tsc();
            port.send();
            // ORDERING: Relaxed, as above.
            while SEEN.0.load(Ordering::Relaxed) == 0 {
                core::hint::spin_loop();
            }
            tsc().saturating_sub(before)
        });
        STOP.0.store(true, Ordering::Relaxed); // ORDERING: Relaxed, the hypercall that wakes the other is behind it.
        port.send();
        await_serving(false).await;
    }
}

async fn await_serving(serves: bool) {
    // ORDERING: Acquire, pairs with the Release in `serve`: the stub is not used before, or any more.
    while SERVES.load(Ordering::Acquire) != serves {
        timer::sleep(1_000_000).await;
    }
}

/// What the other vcpu does while it is measured. Context: a task of its own there.
fn serve(state: State) {
    let mut masked = percpu::mask_upcalls();
    // SAFETY: made for the event callback's frame, and for what `BarePort::open` has filled in for it.
    unsafe { register(bare_stubs::entry(events::get().abi())) };
    SERVES.store(true, Ordering::Release); // ORDERING: Release, pairs with the Acquire in `await_serving`.
    // ORDERING: Relaxed in both, a flag; whoever sets it sends an event to who is blocked.
    match state {
        // Of this bench, the first alone.
        State::Spin | State::User => {
            drop(masked);
            while !STOP.0.load(Ordering::Relaxed) {
                core::hint::spin_loop();
            }
            masked = percpu::mask_upcalls();
        }
        State::Idle => {
            while !STOP.0.load(Ordering::Relaxed) {
                masked.block();
                masked = percpu::mask_upcalls();
            }
        }
    }
    // SAFETY: the kernel's own, as it was.
    unsafe { register(traps::upcall_entry()) };
    all_may_be_pending(&masked);
    drop(masked);
    SERVES.store(false, Ordering::Release); // ORDERING: Release, as above.
}

/// # Safety
/// As for [`callback_register`] of the event callback.
unsafe fn register(entry: u64) {
    // SAFETY: the same clause.
    unsafe { callback_register(CALLBACKTYPE_event, CALLBACKF_mask_events, entry) }
        .expect("Xen takes canonical callback addresses");
}

/// Has the kernel look for what the stubs have passed over, once upcalls are unmasked.
fn all_may_be_pending(_masked: &Masked) {
    let flags = percpu::vcpu_info();
    // ORDERING: Relaxed twice: read back by this CPU. Xen's own changes in between are read-modify-writes and lose nothing.
    flags.evtchn_pending_sel.fetch_or(!0, Ordering::Relaxed);
    flags.evtchn_upcall_pending.store(1, Ordering::Relaxed);
}

/// Where the mask of a port is.
enum Mask {
    TwoLevel { shared: &'static SharedInfo, word: usize, bit: u64 },
    Fifo { word: &'static AtomicU32 },
}

/// An IPI port that the kernel's tables do not know. Closed when it is dropped.
struct BarePort {
    port: u32,
    mask: Mask,
}

impl BarePort {
    /// A port that notifies `cpu`, masked, and the stubs' places filled in for it.
    ///
    /// # Errors
    /// Which call Xen refused, or that the port is beyond the pages that Xen has.
    fn open(cpu: CpuId) -> Result<BarePort, String> {
        let mut batch = Batch::<1>::new();
        let token = batch.bind_ipi(cpu.vcpu()).expect("the batch has room for one");
        let bound = batch.issue().and_then(|results| results.port(token));
        let port = bound.map_err(|errno| format!("bind_ipi: {errno}"))?;
        let mask = Self::place(port, cpu).inspect_err(|_| close(port))?;
        Ok(BarePort { port, mask })
    }

    fn place(port: u32, cpu: CpuId) -> Result<Mask, String> {
        let nr = PortNr::new(port).ok_or_else(|| format!("port {port} is out of range"))?;
        // ORDERING: Relaxed in all, read by stubs that are registered after this.
        match events::get().abi() {
            AbiKind::TwoLevel => {
                // SAFETY: mapped since boot. A suspend unmaps it, and maps the new life's at the same place before any task runs again.
                let shared: &'static SharedInfo = unsafe { memory::shared_info_place().as_ref() };
                let (word, bit) = (nr.index() / 64, 1 << (nr.index() % 64));
                PLACES.event.store(ptr::from_ref(&shared.evtchn_pending[word]).cast_mut().cast(), Ordering::Relaxed);
                PLACES.event_keeps.store(!bit, Ordering::Relaxed);
                Ok(Mask::TwoLevel { shared, word, bit })
            }
            AbiKind::Fifo => {
                let place =
                    events::get().fifo_place(nr, cpu).ok_or_else(|| format!("port {port} has no event word"))?;
                hypercall::set_priority(port, PRIORITY).map_err(|errno| format!("set_priority: {errno}"))?;
                // Alone in its queue, so its link is always 0.
                let taken: u32 = 1 << EVTCHN_FIFO_PENDING | 1 << EVTCHN_FIFO_LINKED;
                PLACES.event.store(ptr::from_ref(place.word).cast_mut().cast(), Ordering::Relaxed);
                PLACES.event_keeps.store(u64::from(!taken), Ordering::Relaxed);
                PLACES.ready.store(ptr::from_ref(place.ready).cast_mut(), Ordering::Relaxed);
                PLACES.ready_keeps.store(!(1 << PRIORITY), Ordering::Relaxed);
                Ok(Mask::Fifo { word: place.word })
            }
        }
    }

    fn unmask(&self) {
        hypercall::unmask(self.port).expect("Xen unmasks a port that it has just bound");
    }

    #[inline]
    fn send(&self) {
        hypercall::send(self.port).expect("Xen sends on a port that it has just bound");
    }
}

impl Drop for BarePort {
    fn drop(&mut self) {
        // Ports that the kernel's tables do not know are masked.
        // ORDERING: Relaxed in both. Stops deliveries to come, orders nothing.
        match &self.mask {
            Mask::TwoLevel { shared, word, bit } => {
                shared.evtchn_mask[*word].fetch_or(*bit, Ordering::Relaxed);
            }
            Mask::Fifo { word } => {
                word.fetch_or(1 << EVTCHN_FIFO_MASKED, Ordering::Relaxed);
            }
        }
        close(self.port);
    }
}

fn close(port: u32) {
    hypercall::close(port).expect("Xen closes a port that it has opened for us");
}

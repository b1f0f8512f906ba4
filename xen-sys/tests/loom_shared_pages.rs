//! The shared structures as a model sees them: they can be built of loom's atomics, and an upcall flag that is read with
//! acquire order shows the selector that Xen wrote before it.
//!
//! The protocols themselves are modelled in the crates that own them; this is the ground that they stand on.
#![cfg(loom)]

use loom::{sync::Arc, thread};
use xen_sys::{
    abi::{
        io::{console::XenconsInterface, xs_wire::XenstoreDomainInterface},
        xen::{SharedInfo, VcpuInfo},
    },
    primitive::sync::atomic::Ordering::{Acquire, Relaxed, Release},
};

#[test]
fn the_selector_is_seen_behind_the_flag() {
    loom::model(|| {
        let info = Arc::new(VcpuInfo::new());
        let xen = {
            let info = Arc::clone(&info);
            thread::spawn(move || {
                info.evtchn_pending_sel.store(1, Relaxed);
                // ORDERING: Release, pairs with the Acquire below: who sees the flag sees the selector.
                info.evtchn_upcall_pending.store(1, Release);
            })
        };
        // ORDERING: Acquire, pairs with the Release above.
        if info.evtchn_upcall_pending.load(Acquire) != 0 {
            assert_eq!(info.evtchn_pending_sel.load(Relaxed), 1);
        }
        xen.join().expect("Xen's side does not panic");
    });
}

#[test]
#[should_panic(expected = "stale selector")]
fn a_weaker_flag_shows_a_stale_selector() {
    loom::model(|| {
        let info = Arc::new(VcpuInfo::new());
        let xen = {
            let info = Arc::clone(&info);
            thread::spawn(move || {
                info.evtchn_pending_sel.store(1, Relaxed);
                // ORDERING: Relaxed, wrong on purpose: the model must find what it allows.
                info.evtchn_upcall_pending.store(1, Relaxed);
            })
        };
        // ORDERING: as above.
        if info.evtchn_upcall_pending.load(Relaxed) != 0 {
            assert_eq!(info.evtchn_pending_sel.load(Relaxed), 1, "stale selector");
        }
        xen.join().expect("Xen's side does not panic");
    });
}

#[test]
fn shared_info_fits_a_model_thread() {
    loom::model(|| {
        let shared = Box::new(SharedInfo::new());
        assert_eq!(shared.evtchn_mask[63].load(Relaxed), 0);
    });
}

/// A model's byte is an object of some twenty bytes, so the ring pages do not fit the stack of a model's first thread.
#[test]
fn ring_pages_fit_a_model_thread_with_a_larger_stack() {
    loom::model(|| {
        let thread = thread::Builder::new().stack_size(1 << 20).spawn(|| {
            let console = Box::new(XenconsInterface::new());
            let store = Box::new(XenstoreDomainInterface::new());
            assert_eq!(console.out[2047].load(Relaxed), 0);
            assert_eq!(store.rsp[1023].load(Relaxed), 0);
        });
        thread.expect("one more thread is possible").join().expect("the pages are as they were made");
    });
}

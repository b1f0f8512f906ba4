//! The shared structures can be built of loom's atomics, within a model's thread. The protocols on them are modelled in
//! the crates that own them.
#![cfg(loom)]

use loom::thread;
use xen_sys::{
    abi::{
        io::{console::XenconsInterface, xs_wire::XenstoreDomainInterface},
        xen::SharedInfo,
    },
    primitive::sync::atomic::Ordering::Relaxed,
};

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

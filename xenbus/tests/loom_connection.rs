//! xenstored resets the ring after a restore, and says so last: whoever sees that it is connected sees its indices reset.
#![cfg(loom)]

use loom::sync::Arc;
use loom::thread;
use xen_sys::abi::io::xs_wire::{XENSTORE_CONNECTED, XENSTORE_RECONNECT, XenstoreDomainInterface};
use xen_sys::primitive::sync::atomic::Ordering::{Relaxed, Release};
use xenbus::ring::{RING_LEN, Ring};

/// The page's bytes are objects of the model: see `xen-sys/tests/loom_shared_pages.rs`.
const STACK: usize = 1 << 20;

fn reconnect() {
    let page = Arc::new(XenstoreDomainInterface::new());
    // A full ring of the old connection.
    page.req_cons.store(7, Relaxed);
    page.req_prod.store(7 + RING_LEN, Relaxed);
    page.connection.store(XENSTORE_RECONNECT, Relaxed);
    let xenstored = {
        let page = Arc::clone(&page);
        thread::spawn(move || {
            page.req_cons.store(0, Relaxed);
            page.req_prod.store(0, Relaxed);
            page.connection.store(XENSTORE_CONNECTED, Release);
        })
    };
    let ring = Ring::new(&page);
    if ring.is_connected() {
        assert_eq!(ring.write(b"x"), Ok(1), "an index of the old connection");
    }
    xenstored.join().expect("xenstored does not panic");
}

#[test]
fn connected_means_reset() {
    loom::model(|| {
        let guest = thread::Builder::new().stack_size(STACK).spawn(reconnect).expect("one more thread is possible");
        guest.join().expect("the guest does not panic");
    });
}

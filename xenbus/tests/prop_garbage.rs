//! Whatever stands in the reply ring, the store neither panics nor hangs, and a restore makes it good again.
//!
//! ORDERING: Relaxed throughout: one thread plays all sides.
#![cfg(not(loom))]

use proptest::collection::vec;
use proptest::prelude::*;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Waker};
use xen_sys::hypercall::sched::SuspendOutcome::Resumed;
use xenbus::fake::{self, block_on, settle};
use xenbus::wire::Header;
use xenbus::{Change, shutdown};

#[derive(Clone, Debug)]
enum Garbage {
    Bytes(Vec<u8>),
    /// Nearly a message: a likely type and id, any payload, a length that may be wrong.
    Message {
        kind: u32,
        req_id: u32,
        payload: Vec<u8>,
        claim: Option<u32>,
    },
    /// An index of the page becomes this.
    Index(usize, u32),
    /// So do `connection` and `error`.
    Status(u32, u32),
    /// One more byte beyond what fits.
    Carry,
}

/// Payloads that get further than random ones.
const LIKELY: [&[u8]; 9] =
    [b"", b"OK\0", b"1\0", b"ENOENT\0", b"EAGAIN\0", b"E2BIG\0", b"p\0t#0\0", b"5\0a\0", b"5\0\0"];

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..60),
        prop::sample::select(&LIKELY[..]).prop_map(<[u8]>::to_vec),
        vec(Just(b'x'), 4090..4200),
    ]
}

fn garbage() -> impl Strategy<Value = Garbage> {
    prop_oneof![
        1 => vec(any::<u8>(), 1..200).prop_map(Garbage::Bytes),
        12 => (0u32..25, 0u32..12, payload(), prop::option::weighted(0.1, any::<u32>()))
            .prop_map(|(kind, req_id, payload, claim)| Garbage::Message { kind, req_id, payload, claim }),
        1 => (0usize..4, any::<u32>()).prop_map(|(which, index)| Garbage::Index(which, index)),
        1 => (0u32..3, 0u32..4).prop_map(|(connection, error)| Garbage::Status(connection, error)),
        2 => Just(Garbage::Carry),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 1 } else { 600 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn garbage_is_survived(start in any::<u32>(), drop_after in 0usize..20, rubbish in vec(garbage(), 1..20)) {
        let (store, mut fake) = fake::pair(start);
        let mut watch = block_on(&store, &mut fake, store.watch("p", "t")).expect("still honest");
        block_on(&store, &mut fake, store.transaction(async |_| Ok(()))).expect("still honest");
        let page = fake.page();
        fake.mute = true;
        let mut futures: Vec<Pin<Box<dyn Future<Output = ()> + '_>>> = vec![
            // The first, as it does nothing while something is under way.
            Box::pin(async { drop(shutdown::take_request_at_once(&store, || ()).await) }),
            Box::pin(async { drop(store.read("a").await) }),
            Box::pin(async { drop(store.directory("a").await) }),
            Box::pin(async { drop(store.watch("a", "t").await) }),
            Box::pin(async { drop(store.transaction(async |tx| tx.write("a", "1").await).await) }),
            Box::pin(async { drop(shutdown::take_request(&store, |_| ()).await) }),
            Box::pin(async { drop(store.reset_watches().await) }),
        ];
        for (round, piece) in rubbish.iter().enumerate() {
            if round == drop_after {
                futures.clear();
            }
            // By hand, since the fake would not write over a broken ring; xenstored reads all we send.
            page.req_cons.store(page.req_prod.load(Relaxed), Relaxed);
            let mut put = |bytes: &[u8]| {
                for piece in bytes.chunks(1024) {
                    let mut index = page.rsp_prod.load(Relaxed);
                    for &byte in piece {
                        page.rsp[(index % 1024) as usize].store(byte, Relaxed);
                        index = index.wrapping_add(1);
                    }
                    page.rsp_prod.store(index, Relaxed);
                    settle(&store, &mut fake);
                }
            };
            match piece {
                Garbage::Bytes(bytes) => put(bytes),
                Garbage::Message { kind, req_id, payload, claim } => {
                    let len = claim.unwrap_or(payload.len().try_into().expect("short"));
                    put(&[&Header { kind: *kind, req_id: *req_id, tx_id: 0, len }.encode()[..], payload].concat());
                }
                Garbage::Index(which, index) => {
                    [&page.req_cons, &page.req_prod, &page.rsp_cons, &page.rsp_prod][*which].store(*index, Relaxed);
                }
                Garbage::Status(connection, error) => {
                    page.connection.store(*connection, Relaxed);
                    page.error.store(*error, Relaxed);
                }
                Garbage::Carry => put(&[0]),
            }
            store.on_event();
            settle(&store, &mut fake);
            futures.retain_mut(|future| future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        drop(futures);

        // The worst of all, so that the suspend does not wait for what will never be answered.
        page.connection.store(0, Relaxed);
        page.rsp_prod.store(page.rsp_cons.load(Relaxed).wrapping_add(1025), Relaxed);
        settle(&store, &mut fake);
        prop_assert!(store.fault().is_some());
        let quiet = block_on(&store, &mut fake, store.quiesce()).expect("nobody else");
        fake.mute = false;
        fake.restore(true);
        quiet.resume(Resumed);
        block_on(&store, &mut fake, store.write("p", "1")).expect("honest again");
        prop_assert_eq!(block_on(&store, &mut fake, watch.changed()), Ok(Change::Everything));
        settle(&store, &mut fake);
        prop_assert_eq!(fake.watches().len(), 1);
        prop_assert!(store.holds_no_request());
    }
}

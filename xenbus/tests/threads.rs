//! The store from several threads, with the fake in one of its own: nothing is lost, doubled or mixed up when everybody
//! really runs at the same time. Orders and counts only, no times.
#![cfg(not(loom))]

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use xen_sys::hypercall::sched::SuspendOutcome::Continued;
use xenbus::fake;
use xenbus::{Cause, Change, Store};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs `future` in this thread until it is done or `stop` is set.
fn run<T>(future: impl Future<Output = T>, stop: &AtomicBool) -> Option<T> {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    // ORDERING: Acquire, pairs with the Release store of the test's end.
    while !stop.load(Ordering::Acquire) {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => return Some(result),
            Poll::Pending => thread::park(),
        }
    }
    None
}

static NEVER: AtomicBool = AtomicBool::new(false);

async fn increment(store: &Store) {
    loop {
        let outcome = store
            .transaction(async |tx| {
                let count: u32 = tx.read("count").await?.parse().expect("a number");
                tx.write("count", &(count + 1).to_string()).await
            })
            .await;
        match outcome {
            Ok(()) => return,
            Err(error) => assert!(matches!(error.cause, Cause::Conflict { .. }), "{error}"),
        }
    }
}

#[test]
fn nothing_is_lost_when_everybody_runs_at_once() {
    let (workers, rounds) = if cfg!(miri) { (2, 2) } else { (4, 60) };
    let (store, mut fake) = fake::pair(u32::MAX - 99);
    fake.chunk = 100;
    fake.set("count", b"0");
    let (store, stop) = (&store, &AtomicBool::new(false));
    let fake = thread::scope(|scope| {
        let server = scope.spawn(move || {
            // ORDERING: Acquire, as in `run`.
            while !stop.load(Ordering::Acquire) {
                if fake.step_if_rung() {
                    store.on_event();
                } else {
                    thread::yield_now();
                }
            }
            fake
        });
        let pump = scope.spawn(move || {
            run(store.pump(), stop);
        });
        let tasks: Vec<_> = (0..workers)
            .map(|worker| {
                scope.spawn(move || {
                    let work = async {
                        let path = format!("data/{worker}");
                        let mut watch = store.watch(&path, "t").await.expect("watch");
                        assert_eq!(watch.changed().await, Ok(Change::Path(path.clone())));
                        for round in 0..rounds {
                            increment(store).await;
                            store.write(&path, &format!("{worker}:{round}")).await.expect("write");
                            // Ours is the only writer, so there is a change to see, and it is ours.
                            assert_eq!(watch.changed().await, Ok(Change::Path(path.clone())));
                            assert_eq!(store.read(&path).await.expect("read"), format!("{worker}:{round}"));
                        }
                        watch.unwatch().await.expect("unwatch");
                    };
                    run(work, &NEVER).expect("never stopped");
                })
            })
            .collect();
        // Meanwhile the store goes quiet and on again.
        for _ in 0..rounds {
            let quiet = run(store.quiesce(), &NEVER).expect("never stopped").expect("nobody else");
            assert_eq!(store.counters().requests, store.counters().replies);
            quiet.resume(Continued);
        }
        for task in tasks {
            task.join().expect("a worker failed");
        }
        // ORDERING: Release, pairs with the Acquire loads of the loops.
        stop.store(true, Ordering::Release);
        pump.thread().unpark();
        server.join().expect("the fake failed")
    });
    assert_eq!(fake.value("count"), Some((workers * rounds).to_string().as_bytes()));
    assert!(fake.watches().is_empty());
    assert!(store.holds_no_request());
    let counters = store.counters();
    assert_eq!((counters.oddities, counters.faults), (0, 0));
    assert_eq!(counters.requests, counters.replies);
}

//! The heap's lock under loom: one holder at a time, each sees what the last one did, nobody waits for ever. A copy with
//! a weakened release must fail.
#![cfg(loom)]

use loom::sync::Arc;
use loom::thread;
use mm::MaskedLock;
use percpu::{CpuId, hosted};
use xen_sys::primitive::cell::UnsafeCell;
use xen_sys::primitive::sync::atomic::{AtomicBool, Ordering};

#[test]
fn holders_come_one_after_the_other() {
    loom::model(|| {
        let lock = Arc::new(MaskedLock::new(0_u32));
        let others: Vec<_> = CpuId::first(3)
            .skip(1)
            .map(|cpu| {
                let lock = lock.clone();
                thread::spawn(move || {
                    let _on = hosted::enter(cpu);
                    lock.with(|count| *count += 1);
                })
            })
            .collect();
        for other in others {
            other.join().expect("no panic");
        }
        let _on = hosted::enter(CpuId::BOOT);
        assert_eq!(lock.with(|count| *count), 2);
    });
}

#[test]
fn a_holder_can_come_back() {
    loom::model(|| {
        let lock = Arc::new(MaskedLock::new(Vec::new()));
        let theirs = lock.clone();
        let other = thread::spawn(move || {
            let _on = hosted::enter(CpuId::new(1).expect("1 is below CpuId::MAX"));
            theirs.with(|order| order.push(1));
        });
        let _on = hosted::enter(CpuId::BOOT);
        lock.with(|order| order.push(0));
        lock.with(|order| order.push(0));
        other.join().expect("no panic");
        lock.with(|order| {
            assert_eq!(order.len(), 3);
            assert_eq!(order.iter().filter(|cpu| **cpu == 0).count(), 2);
        });
    });
}

/// The lock, with its release weakened.
struct Weak {
    locked: AtomicBool,
    value: UnsafeCell<u32>,
}

// SAFETY: it isn't, which is what the test shows; loom finds the race instead of letting it happen.
unsafe impl Sync for Weak {}

impl Weak {
    fn add(&self) {
        while self.locked.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            thread::yield_now();
        }
        // SAFETY: loom watches the accesses.
        self.value.with_mut(|value| unsafe { *value += 1 });
        self.locked.store(false, Ordering::Relaxed);
    }
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_relaxed_release_is_found() {
    loom::model(|| {
        let lock = Arc::new(Weak { locked: AtomicBool::new(false), value: UnsafeCell::new(0) });
        let theirs = lock.clone();
        let other = thread::spawn(move || theirs.add());
        lock.add();
        other.join().expect("no panic");
    });
}

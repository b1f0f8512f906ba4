//! The run queue under loom: nothing is lost, nothing comes twice, each adder's items come in its order, and whoever takes an
//! item sees what was done before it was added. A copy with either ordering weakened fails.
#![cfg(loom)]

use std::ptr::NonNull;

use loom::sync::Arc;
use loom::thread;
use xen_sys::primitive::cell::UnsafeCell;

#[path = "../src/run_queue.rs"]
#[expect(dead_code, reason = "only what runs beside others is modelled")]
mod run_queue;

use run_queue::{Link, Linked, RunQueue};

struct Node {
    link: Link,
    /// Plain data: loom sees whether who reads it has acquired who wrote it.
    value: UnsafeCell<usize>,
}

struct Owner(Box<Node>);

// SAFETY: a node belongs to one thread at a time.
unsafe impl Send for Owner {}

// SAFETY: `Box`'s own pair.
unsafe impl Linked for Owner {
    fn link(&self) -> &Link {
        &self.0.link
    }

    fn into_raw(self) -> NonNull<()> {
        NonNull::new(Box::into_raw(self.0).cast()).expect("a box is not null")
    }

    unsafe fn from_raw(raw: NonNull<()>) -> Owner {
        // SAFETY: as the caller says.
        Owner(unsafe { Box::from_raw(raw.cast().as_ptr()) })
    }
}

fn push(queue: &RunQueue<Owner>, value: usize) {
    let node = Node { link: Link::new(), value: UnsafeCell::new(0) };
    // SAFETY: ours until it is added.
    node.value.with_mut(|place| unsafe { *place = value });
    queue.push(Owner(Box::new(node)));
}

fn take(queue: &RunQueue<Owner>) -> Vec<usize> {
    queue
        .take()
        .map(|owner| {
            owner.0.value.with(|place| {
                // SAFETY: ours since it was taken.
                unsafe { *place }
            })
        })
        .collect()
}

#[test]
fn two_add_while_the_owner_takes() {
    loom::model(|| {
        let queue = Arc::new(RunQueue::<Owner>::new());
        let adders = [&[10, 11][..], &[20]].map(|values| {
            let queue = queue.clone();
            thread::spawn(move || values.iter().for_each(|value| push(&queue, *value)))
        });
        let mut seen = take(&queue);
        for adder in adders {
            adder.join().expect("no panic");
        }
        seen.extend(take(&queue));
        assert!(queue.is_empty());
        let of_one: Vec<_> = seen.iter().copied().filter(|value| value / 10 == 1).collect();
        assert_eq!(of_one, [10, 11]);
        assert_eq!(seen.iter().filter(|value| **value == 20).count(), 1);
        assert_eq!(seen.len(), 3);
    });
}

/// A task that is run, and added again by whoever wakes it, while another one is being added.
#[test]
fn an_item_that_comes_back_is_not_mixed_up() {
    loom::model(|| {
        let queue = Arc::new(RunQueue::<Owner>::new());
        push(&queue, 1);
        let adder = {
            let queue = queue.clone();
            thread::spawn(move || push(&queue, 2))
        };
        let mut seen = 0;
        for owner in queue.take() {
            seen += 1;
            queue.push(owner);
        }
        adder.join().expect("no panic");
        assert!(seen == 1 || seen == 2);
        let mut values = take(&queue);
        values.sort_unstable();
        assert_eq!(values, [1, 2]);
    });
}

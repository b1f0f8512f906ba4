//! A small executor: polls what was woken, moves the fake when its bell was rung, and knows when nobody can go on.

use super::Fake;
use crate::store::Store;
use alloc::boxed::Box;
use alloc::task::Wake;
use core::future::pending;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::vec::Vec;

/// Rounds after which a run counts as endless. Byte-wise transfer of a few long messages stays far below.
const ROUNDS_MAX: usize = 400_000;

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        // ORDERING: Release, pairs with the Acquire swap in `Task::poll`.
        self.0.store(true, Ordering::Release);
    }
}

struct Task<'a> {
    future: Option<Pin<Box<dyn Future<Output = ()> + 'a>>>,
    flag: Arc<Flag>,
}

impl<'a> Task<'a> {
    fn new(future: impl Future<Output = ()> + 'a) -> Self {
        Self { future: Some(Box::pin(future)), flag: Arc::new(Flag(AtomicBool::new(true))) }
    }

    /// Polls it if it was woken; true if it was.
    fn poll(&mut self) -> bool {
        let Some(future) = &mut self.future else {
            return false;
        };
        // ORDERING: Acquire, pairs with the Release store in `wake`.
        if !self.flag.0.swap(false, Ordering::Acquire) {
            return false;
        }
        let waker = Waker::from(Arc::clone(&self.flag));
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            self.future = None;
        }
        true
    }
}

/// Runs all of `tasks`, the pump and the fake until every task is done; false if they get stuck before.
fn drive(store: &Store, fake: &mut Fake, tasks: &mut [Task<'_>]) -> bool {
    let mut pump = Task::new(async {
        store.pump().await;
    });
    for _ in 0..ROUNDS_MAX {
        let mut moved = pump.poll();
        for task in &mut *tasks {
            moved |= task.poll();
        }
        if tasks.iter().all(|task| task.future.is_none()) {
            return true;
        }
        if fake.step_if_rung() {
            moved = true;
            store.on_event();
        }
        if !moved {
            return false;
        }
    }
    panic!("still moving after {ROUNDS_MAX} rounds");
}

/// What `future` comes to, or `None` if it gets stuck.
pub fn try_block_on<T>(store: &Store, fake: &mut Fake, future: impl Future<Output = T>) -> Option<T> {
    let mut result = None;
    let task = Task::new(async { result = Some(future.await) });
    drive(store, fake, &mut [task]);
    result
}

/// What `future` comes to.
/// # Panics
/// If it gets stuck.
pub fn block_on<T>(store: &Store, fake: &mut Fake, future: impl Future<Output = T>) -> T {
    try_block_on(store, fake, future).expect("the future is stuck")
}

/// Runs all of `futures` at a time.
/// # Panics
/// If they get stuck.
pub fn run_all<'a>(store: &Store, fake: &mut Fake, futures: Vec<Pin<Box<dyn Future<Output = ()> + 'a>>>) {
    let mut tasks: Vec<_> = futures.into_iter().map(Task::new).collect();
    assert!(drive(store, fake, &mut tasks), "the futures are stuck");
}

/// Runs the pump and the fake until nothing moves.
pub fn settle(store: &Store, fake: &mut Fake) {
    assert_eq!(try_block_on(store, fake, pending::<()>()), None);
}

/// Polls `future` once; what it waits for is not noticed.
pub fn poll_once<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::pin::pin;

    #[test]
    fn a_future_that_nobody_wakes_is_stuck() {
        let (store, mut fake) = crate::fake::pair(0);
        assert_eq!(try_block_on(&store, &mut fake, pending::<()>()), None);
        assert_eq!(block_on(&store, &mut fake, async { 3 }), 3);
        assert!(poll_once(pin!(pending::<()>())).is_pending());
    }
}

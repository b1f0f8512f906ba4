//! A vcpu that does not come to the rendezvous of a suspend. Under xl, where the harness asks for the suspends: the first is aborted
//! and names it, the guest runs on, and once the vcpu is back the next one works.

use alloc::format;

use percpu::CpuId;
use xen_sys::primitive::sync::atomic::{AtomicBool, Ordering};

use super::Verdict;
use crate::{cpus, executor, time, timer};

/// How long the harness may take to ask.
const PATIENCE_NS: u64 = 600_000_000_000;

/// How long it takes to tell what became of a suspend, at most.
const TOLD_NS: u64 = 2_000_000_000;

/// The last vcpu has a task that does not end.
pub(super) async fn in_suspend() -> Verdict {
    hang(false).await
}

/// The last vcpu takes no upcalls.
pub(super) async fn deaf_in_suspend() -> Verdict {
    hang(true).await
}

async fn hang(deaf: bool) -> Verdict {
    static HANGS: AtomicBool = AtomicBool::new(false);
    static BACK: AtomicBool = AtomicBool::new(false);
    if cpus::nr() == 1 {
        return Err("needs two vcpus".into());
    }
    let last = CpuId::new(cpus::nr() - 1).expect("there are not more vcpus than CPUs");
    let (held, given_up) = cpus::rendezvous_racy();
    executor::spawn_on(last, async move {
        let masked = deaf.then(percpu::mask_upcalls);
        // ORDERING: Relaxed all, flags; nothing is read because of them.
        HANGS.store(true, Ordering::Relaxed);
        while cpus::rendezvous_racy().1 == given_up {
            core::hint::spin_loop();
        }
        // Until it has been told who was missing.
        let seen_ns = time::now_ns();
        while time::now_ns() < seen_ns + TOLD_NS {
            core::hint::spin_loop();
        }
        drop(masked);
        BACK.store(true, Ordering::Relaxed);
    });
    // ORDERING: Relaxed, as above.
    while !HANGS.load(Ordering::Relaxed) {
        timer::sleep(1_000_000).await;
    }
    crate::say!("hanging", cpu = last, deaf = u8::from(deaf));
    // ORDERING: Relaxed, as above.
    until(|| BACK.load(Ordering::Relaxed)).await.ok_or("no suspend was given up")?;
    crate::say!("back", cpu = last);
    until(|| cpus::rendezvous_racy().0 > held).await.ok_or("no suspend took place afterwards")?;
    // The domain ends with this test; what became of the suspend is told before.
    timer::sleep(TOLD_NS).await;
    match cpus::rendezvous_racy() {
        (held_now, given_up_now) if (held_now, given_up_now) == (held + 1, given_up + 1) => {
            Ok(format!("hung={last} given_up=1 held=1"))
        }
        (held_now, given_up_now) => Err(format!("{} held, {} given up", held_now - held, given_up_now - given_up)),
    }
}

async fn until(done: impl Fn() -> bool) -> Option<()> {
    for _ in 0..PATIENCE_NS / 10_000_000 {
        if done() {
            return Some(());
        }
        timer::sleep(10_000_000).await;
    }
    None
}

//! A post to a CPU that is binding its port anew after a restore. The sender may find no port, or the inbox may hold
//! work whose event went down with the old domain: neither is stranded, as the target publishes its port and then looks
//! once. All accesses to the port are relaxed here: what is needed comes from the inbox.
#![cfg(loom)]

mod model;

use std::cell::Cell;

use loom::sync::Arc;
use loom::sync::atomic::AtomicBool;
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread;
use model::{Bells, check, cpu};
use percpu::{CpuId, Masked, hosted};
use smp::{Delivery, Kind, Kinds, Mail};

struct Restored {
    bells: Bells,
    /// The target's port is bound.
    bound: AtomicBool,
}

std::thread_local! {
    static SEEN: Cell<usize> = const { Cell::new(0) };
}

impl Delivery for Restored {
    fn ring(&self, cpu: CpuId) {
        if self.bound.load(Relaxed) {
            self.bells.ring(cpu);
        }
    }

    fn handle(&self, _masked: &Masked, kinds: Kinds) {
        let came = [Kind::Reschedule, Kind::Alive].into_iter().filter(|kind| kinds.contains(*kind)).count();
        SEEN.with(|seen| seen.set(seen.get() + came));
    }
}

fn restored() -> Arc<Mail<Restored>> {
    SEEN.with(|seen| seen.set(0));
    Arc::new(Mail::new(3, Restored { bells: Bells::new(3), bound: AtomicBool::new(false) }))
}

fn sender(mail: &Arc<Mail<Restored>>, n: usize, kind: Kind) -> thread::JoinHandle<()> {
    let mail = Arc::clone(mail);
    thread::spawn(move || {
        let _on = hosted::enter(cpu(n));
        mail.post(CpuId::BOOT, kind);
    })
}

/// Binds, looks once, and from then on only when rung.
fn rebind_and_see(mail: &Mail<Restored>, nr: usize) {
    let _on = hosted::enter(CpuId::BOOT);
    mail.delivery().bound.store(true, Relaxed);
    mail.serve(&hosted::masked());
    while SEEN.with(Cell::get) < nr {
        mail.delivery().bells.sleep();
        mail.serve(&hosted::masked());
    }
}

#[test]
fn a_post_meets_the_new_port_or_the_first_look() {
    check(5, 12, || {
        let mail = restored();
        let sender = sender(&mail, 1, Kind::Alive);
        rebind_and_see(&mail, 1);
        sender.join().expect("the sender has panicked");
    });
}

#[test]
fn two_posts_with_one_ring_between_them() {
    check(3, 8, || {
        let mail = restored();
        let senders = [sender(&mail, 1, Kind::Alive), sender(&mail, 2, Kind::Reschedule)];
        rebind_and_see(&mail, 2);
        senders.into_iter().for_each(|sender| sender.join().expect("a sender has panicked"));
    });
}

#[test]
fn work_from_before_the_suspend_is_found() {
    check(5, 12, || {
        let mail = restored();
        // Its event was lost with the old domain.
        {
            let _on = hosted::enter(cpu(1));
            mail.post(CpuId::BOOT, Kind::Alive);
        }
        let sender = sender(&mail, 2, Kind::Reschedule);
        rebind_and_see(&mail, 2);
        sender.join().expect("the sender has panicked");
    });
}

//! An ipi to a CPU that is binding its ports after a restore: either it is sent on the new port, or the target finds
//! the work when it looks at its inbox after binding. The inbox here is one word, and keeps what `Events::send_ipi`
//! asks of an inbox; one that does not must strand work.
//!
//! ORDERING: but for the inbox's word Relaxed throughout: that the work is seen is for that word and the code under test to see to.
#![cfg(loom)]

use evtchn::hosted::{self, Fake, bring_up, cpu, masked, quiesced};
use evtchn::{AbiKind, Events, Handlers, Ipi, Ports, SendOutcome};
use loom::sync::Arc;
use loom::sync::atomic::AtomicUsize;
use loom::sync::atomic::Ordering::{self, AcqRel, Relaxed, Release};
use loom::thread;
use percpu::Masked;

loom::lazy_static! {
    static ref INBOX: AtomicUsize = AtomicUsize::new(0);
    static ref WORK: AtomicUsize = AtomicUsize::new(0);
    static ref DONE: AtomicUsize = AtomicUsize::new(0);
}

/// Takes what is in the inbox and does it.
fn take() {
    if INBOX.swap(0, AcqRel) != 0 {
        assert_eq!(WORK.load(Relaxed), 1, "the work is visible to who takes it");
        DONE.fetch_add(1, Relaxed);
    }
}

fn on_call(_: &Masked) {
    take();
}

fn upcall(xen: &Fake, events: &Events<Fake>) {
    let _on = percpu::hosted::enter(cpu(1));
    events.demux(&masked(), xen.flags(cpu(1)));
}

/// CPU 0, restored, posts to CPU 1, which is being restored. `post` is the ordering of the inbox. Returns in how many
/// interleavings the work was left undone.
fn stranded(post: Ordering) -> usize {
    // std's: it counts across the runs of the model.
    let stranded = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = stranded.clone();
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let xen = Fake::new(2);
        let events = Arc::new(hosted::boot(&xen, AbiKind::TwoLevel, Handlers::new().ipi(Ipi::Call, on_call)));
        // CPU 1 has a port of the first life, so that its word is not merely empty.
        {
            let _on = percpu::hosted::enter(cpu(1));
            bring_up(&events, &xen).expect("room");
        }
        events.detach(&quiesced());
        xen.restore();
        xen.flags(cpu(1)).evtchn_pending_sel.store(0, Relaxed);
        xen.flags(cpu(1)).evtchn_upcall_pending.store(0, Relaxed);
        hosted::attach(&events, &xen, Ports::Gone);

        let target = {
            let (xen, events) = (xen.clone(), events.clone());
            thread::spawn(move || {
                let _on = percpu::hosted::enter(cpu(1));
                bring_up(&events, &xen).expect("room");
                take();
            })
        };
        let outcome = {
            let _on = percpu::hosted::enter(cpu(0));
            WORK.store(1, Relaxed);
            INBOX.fetch_or(1, post);
            events.send_ipi(cpu(1), Ipi::Call)
        };
        target.join().expect("the target does not panic");
        if xen.upcall_due(cpu(1)) {
            upcall(&xen, &events);
        }
        assert!(matches!(outcome, SendOutcome::Sent | SendOutcome::Unbound), "{outcome:?}");
        match DONE.load(Relaxed) {
            0 => drop(count.fetch_add(1, Relaxed)),
            done => assert_eq!(done, 1),
        }
    });
    stranded.load(Relaxed)
}

#[test]
fn work_is_announced_or_found() {
    assert_eq!(stranded(AcqRel), 0);
}

#[test]
fn a_post_without_acquire_strands_work() {
    assert_ne!(stranded(Release), 0);
}

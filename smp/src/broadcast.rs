//! The same for many CPUs at once: [`Mail::post_all`] and [`Mail::run_on_many`].
//!
//! Each inbox is posted to as by [`Mail::post`], and only those that were empty are rung. Who is to be rung stands in a
//! list on the stack; when that is full, and at the end, [`Delivery::ring_many`] rings all of it, in the kernel by one
//! multicall. So n inboxes, e of them empty, cost n exchanges and ⌈e / 32⌉ hypercalls. Posting is lock-free for each
//! inbox, whatever the others do; nothing is allocated. Context as for a single post: any CPU, any context.
//!
//! Whoever joins one of our posts relies on our ring. So posts and rings alternate: between a post and its ring lie other
//! posts, and 31 sends of the same multicall at most, but no other multicall. Turned down: to post to all and then ring
//! (as many hypercalls, but the last ring, and whoever relies on it, waits behind all of them); a set of CPUs for the
//! list (128 bytes to clear and 1024 bits to walk for each multicall).
//!
//! No atomic of its own: the orderings are those of the inbox and the call node. `tests/loom_broadcast.rs` fails when one
//! of them is weakened, when a CPU is rung before it is posted to or not at all, and when one node is not waited for.

use core::ptr::NonNull;

use percpu::{CpuId, CpuSet, Masked, current, mask_upcalls};

use crate::call::CallNode;
use crate::inbox::{Kind, Posted};
use crate::mail::{Delivery, Mail, StaysUntilDone};
use crate::relax::{Backoff, Patience, Relax};

/// CPUs that are rung by one [`Delivery::ring_many`].
const AT_ONCE: usize = 32;

impl<D: Delivery> Mail<D> {
    /// Asks each of `cpus` for `kind`; this CPU may be one of them. Costs a hypercall for each 32 of them, if their
    /// inboxes are empty. Context: any.
    ///
    /// # Panics
    /// If the domain has not all of them.
    pub fn post_all(&self, cpus: &CpuSet, kind: Kind) {
        let mut rings = Rings::new(self.delivery());
        for cpu in cpus.iter() {
            rings.note(cpu, self.inboxes.on(cpu).post(kind));
        }
    }

    /// Runs `work` on each of `cpus` that is up, once, in its upcall, and waits until all have. Returns how many were down,
    /// and did not run it. They run it at the same time, and so does this CPU, with upcalls masked, if it is one of them. Each of the others needs one of `nodes`, which are
    /// as new afterwards. Context: task, with upcalls unmasked: any of `cpus` may be waiting for this CPU in the same
    /// way. Cost: a hypercall for each 32 CPUs, and an IPI's way back from the slowest.
    ///
    /// # Panics
    /// If there are fewer nodes than other CPUs, or the domain has not all of `cpus`; nothing is run then.
    #[must_use = "some may not have run it"]
    pub fn run_on_many<W, R>(&self, cpus: &CpuSet, nodes: &mut [CallNode], relax: &R, work: &W) -> usize
    where
        W: Fn(&Masked) + Sync,
        R: Relax + ?Sized,
    {
        let mut others = cpus.clone();
        let here_too = others.remove(current());
        assert!(others.iter().all(|cpu| cpu.index() < self.inboxes.nr()), "a call on a CPU that the domain has not");
        let nodes = nodes.get_mut(..others.len()).expect("a node for each other CPU");
        nodes.fill_with(|| CallNode::scoped(run_shared::<W>, (&raw const *work).cast_mut().cast()));

        // The nodes and `work` are borrowed from frames that would be unwound.
        let stays = StaysUntilDone;
        let mut free: &[CallNode] = nodes;
        let mut down = 0;
        let mut rings = Rings::new(self.delivery());
        for cpu in others.iter() {
            let Some((node, rest)) = free.split_first() else { break };
            // SAFETY: claimed by its making, and borrowed until it is completed: we leave only once all are done, and
            // `stays` turns a panic of ours into an abort.
            let posted = unsafe { self.inboxes.on(cpu).post_node(NonNull::from(node)) };
            if posted == Posted::Closed {
                // The node is for the next one.
                down += 1;
                continue;
            }
            free = rest;
            rings.note(cpu, posted);
        }
        let unused = free.len();
        let posted = &nodes[..nodes.len() - unused];
        drop(rings);
        if here_too {
            work(&mask_upcalls());
        }
        let mut backoff = Backoff::new(relax, Patience::SHORT);
        for node in posted {
            while !node.is_done() {
                backoff.step();
            }
        }
        core::mem::forget(stays);
        nodes.fill_with(CallNode::new);
        down
    }
}

/// Runs work that other CPUs run at the same time.
///
/// # Safety
/// `work` points to a `W` that stays until the call has been completed.
unsafe fn run_shared<W: Fn(&Masked) + Sync>(masked: &Masked, work: *mut ()) {
    // SAFETY: a `W` that is there, says the caller; only ever shared, and `Sync`.
    let work = unsafe { &*work.cast_const().cast::<W>() };
    work(masked);
}

/// CPUs that are ours to ring. They are when it is full and when it is dropped, so that a panic in between strands
/// nobody who has joined us.
struct Rings<'a, D: Delivery> {
    delivery: &'a D,
    cpus: [CpuId; AT_ONCE],
    nr: usize,
}

impl<'a, D: Delivery> Rings<'a, D> {
    fn new(delivery: &'a D) -> Self {
        Rings { delivery, cpus: [CpuId::BOOT; AT_ONCE], nr: 0 }
    }

    fn note(&mut self, cpu: CpuId, posted: Posted) {
        match posted {
            Posted::Joined | Posted::Closed => {}
            Posted::First => {
                self.cpus[self.nr] = cpu;
                self.nr += 1;
                if self.nr == AT_ONCE {
                    self.ring();
                }
            }
        }
    }

    fn ring(&mut self) {
        match &self.cpus[..core::mem::take(&mut self.nr)] {
            [] => {}
            [cpu] => self.delivery.ring(*cpu),
            cpus => self.delivery.ring_many(cpus),
        }
    }
}

impl<D: Delivery> Drop for Rings<'_, D> {
    fn drop(&mut self) {
        self.ring();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::Ordering::Relaxed;
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    use percpu::{PerCpu, hosted};

    use super::*;
    use crate::inbox::Kinds;
    use crate::tests::{Alone, kernel};

    /// Writes down who was rung together.
    #[derive(Default)]
    struct Together(Mutex<Vec<Vec<usize>>>);

    impl Together {
        fn note(&self, cpus: &[CpuId]) {
            self.0.lock().expect("no test panics in here").push(cpus.iter().map(|cpu| cpu.index()).collect());
        }
    }

    impl Delivery for Together {
        fn ring(&self, cpu: CpuId) {
            self.note(&[cpu]);
        }

        fn ring_many(&self, cpus: &[CpuId]) {
            self.note(cpus);
        }

        fn handle(&self, _masked: &Masked, _kinds: Kinds) {}
    }

    fn cpu(n: usize) -> CpuId {
        CpuId::new(n).expect("tests use small numbers")
    }

    fn rung(mail: &Mail<Together>) -> Vec<Vec<usize>> {
        std::mem::take(&mut *mail.delivery().0.lock().expect("no test panics in here"))
    }

    #[test]
    fn rings_by_the_batch_and_only_for_empty_inboxes() {
        let mail = Mail::new(70, Together::default());
        let _on = hosted::enter(CpuId::BOOT);
        mail.post(cpu(3), Kind::Alive);
        assert_eq!(rung(&mail), [[3]]);
        mail.post_all(&CpuSet::first(70), Kind::Rendezvous);
        let others: Vec<_> = (0..70).filter(|n| *n != 3).collect();
        assert_eq!(rung(&mail), others.chunks(AT_ONCE).map(<[_]>::to_vec).collect::<Vec<_>>());
        mail.post_all(&CpuSet::first(70), Kind::Reschedule);
        assert!(rung(&mail).is_empty());
        {
            let _on = hosted::enter(cpu(65));
            mail.serve(&hosted::masked());
        }
        mail.post_all(&CpuSet::first(70), Kind::Alive);
        assert_eq!(rung(&mail), [[65]], "one alone costs no batch");
        mail.post_all(&CpuSet::empty(), Kind::Alive);
        assert!(rung(&mail).is_empty());
    }

    #[test]
    fn a_panic_half_way_rings_for_what_was_posted() {
        let mail = Mail::new(2, Together::default());
        let _on = hosted::enter(CpuId::BOOT);
        let posts = || mail.post_all(&CpuSet::first(3), Kind::Alive);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(posts)).expect_err("there is no CPU 2");
        assert_eq!(rung(&mail), [[0, 1]]);
    }

    #[test]
    fn a_delivery_that_knows_no_batches_is_rung_one_by_one() {
        let (mail, _on) = kernel(3);
        mail.post_all(&CpuSet::first(3), Kind::Alive);
        let rings: Vec<_> = mail.delivery().rings.lock().expect("no test panics in here").clone();
        assert_eq!(rings, [cpu(0), cpu(1), cpu(2)]);
    }

    #[test]
    fn each_runs_it_once_where_it_should_and_the_nodes_are_free_again() {
        const NR: usize = 4;
        let (mail, _on) = kernel(NR);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for n in 1..NR {
                let (mail, over) = (&mail, &over);
                scope.spawn(move || {
                    let _on = hosted::enter(cpu(n));
                    while !over.load(Relaxed) {
                        mail.serve(&mask_upcalls());
                        std::thread::yield_now();
                    }
                });
            }
            let runs = PerCpu::new(NR, |_| AtomicUsize::new(0));
            let unmasked = AtomicBool::new(false);
            let mut nodes: [CallNode; NR] = Default::default();
            let all_but_2: CpuSet = CpuId::first(NR).filter(|other| *other != cpu(2)).collect();
            for cpus in [CpuSet::first(NR), all_but_2, CpuSet::first(1), CpuSet::empty()] {
                let down = mail.run_on_many(&cpus, &mut nodes, &Alone, &|_: &Masked| {
                    unmasked.fetch_or(!hosted::upcalls_masked(), Relaxed);
                    runs.mine().fetch_add(1, Relaxed);
                });
                assert_eq!(down, 0);
            }
            over.store(true, Relaxed);
            assert!(!unmasked.into_inner());
            assert_eq!(runs.iter().map(|(_, runs)| runs.load(Relaxed)).collect::<Vec<_>>(), [3, 2, 1, 2]);
            assert!(nodes.iter().all(|node| format!("{node:?}") == "CallNode(Idle)"), "{nodes:?}");
        });
        assert!(!hosted::upcalls_masked());
    }

    #[test]
    fn those_that_are_down_are_passed_over_and_counted() {
        let mail = Mail::of_cpus_down(5, Together::default());
        let _on = hosted::enter(CpuId::BOOT);
        let mut nodes: [CallNode; 4] = Default::default();
        let runs = AtomicUsize::new(0);
        let mut run = || {
            mail.run_on_many(&CpuSet::first(5), &mut nodes, &Alone, &|_: &Masked| {
                runs.fetch_add(1, Relaxed);
            })
        };
        assert_eq!(run(), 4);
        mail.post_all(&CpuSet::first(5), Kind::Rendezvous);
        assert!(rung(&mail).is_empty(), "all are down, this one too");
        let (over, up) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _on = hosted::enter(cpu(3));
                while !over.load(Relaxed) {
                    mail.serve(&mask_upcalls());
                    up.store(true, Relaxed);
                    std::thread::yield_now();
                }
            });
            while !up.load(Relaxed) {
                std::thread::yield_now();
            }
            assert_eq!(run(), 3);
            over.store(true, Relaxed);
        });
        assert_eq!(runs.load(Relaxed), 3);
    }

    #[test]
    #[should_panic(expected = "a node for each other CPU")]
    fn too_few_nodes_are_a_bug() {
        let (mail, _on) = kernel(3);
        let _ = mail.run_on_many(&CpuSet::first(3), &mut [CallNode::new()], &Alone, &|_: &Masked| {});
    }

    #[test]
    #[should_panic(expected = "a CPU that the domain has not")]
    fn a_cpu_too_many_is_a_bug() {
        let (mail, _on) = kernel(1);
        let _ = mail.run_on_many(&CpuSet::first(2), &mut [CallNode::new()], &Alone, &|_: &Masked| {});
    }
}

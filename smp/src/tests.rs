//! What the unit tests of this crate share.

use percpu::{CpuId, Masked, Quiesced, hosted};

use crate::{Clock, Delivery, Kinds, Lead, Mail, Outcome, Patience, Relax, Rendezvous};

/// A kernel without other CPUs: nobody to ring, nothing to wait for.
struct Alone;

impl Relax for Alone {
    fn spin(&self) {}
    fn give_up_processor(&self) {}
}

impl Clock for Alone {
    fn now_ns(&self) -> u64 {
        0
    }
}

impl Delivery for Alone {
    fn ring(&self, _cpu: CpuId) {}
    fn handle(&self, _masked: &Masked, _kinds: Kinds) {}
}

/// Calls `work` with the proof that everybody else is stopped: there is nobody else.
pub(crate) fn quiesced<T>(work: impl FnOnce(&Quiesced) -> T) -> T {
    let _on = hosted::enter(CpuId::BOOT);
    let lead = Lead { mail: &Mail::new(1, Alone), relax: &Alone, clock: &Alone, limit_ns: 1 };
    Rendezvous::new(1, Patience(0))
        .run(&hosted::masked(), &lead, |others, _| (Outcome::Continued, work(others)))
        .expect("nobody can be missing")
}

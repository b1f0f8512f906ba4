//! What a CPU does while it waits for another: spin a little, then give the processor back to Xen. vcpus outnumber
//! processors as a rule, and the one that is waited for may not be running.

use xen_sys::hypercall::sched;

/// For locks: the holder is masked and quick, so a wait means that it has lost its processor.
pub(crate) struct GiveUp;

impl spin::RelaxStrategy for GiveUp {
    fn relax() {
        for _ in 0..64 {
            core::hint::spin_loop();
        }
        sched::yield_();
    }
}

/// For `smp`'s waits.
pub(crate) struct Processor;

impl smp::Relax for Processor {
    fn spin(&self) {
        core::hint::spin_loop();
    }

    fn give_up_processor(&self) {
        sched::yield_();
    }
}

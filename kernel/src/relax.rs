//! What a CPU does while it waits for another in one of `smp`'s waits: spin a little, then give the processor back to Xen. vcpus
//! outnumber processors as a rule, and the one that is waited for may not be running.

use xen_sys::hypercall::sched;

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

//! What the kernel does once it is up.

mod heartbeat;
mod pattern;

use boot::Workload;

/// Starts `workload` on all vcpus. Context: task or boot, once; all vcpus are up.
pub(crate) fn start(workload: Workload) {
    match workload {
        Workload::Idle => {}
        Workload::Heartbeat => {
            heartbeat::start();
            pattern::start();
        }
    }
}

/// A restored or continued domain runs again: what is to be verified after that, is. Context: task.
pub(crate) fn after_suspend() {
    pattern::verify();
}

//! What the kernel does once it is up.

#[cfg(target_os = "none")]
mod heartbeat;
mod numbers;
#[cfg(target_os = "none")]
mod pattern;

#[cfg(target_os = "none")]
use boot::Workload;

#[cfg(target_os = "none")]
pub(crate) use heartbeat::{start_beating, wrong_and_beats_racy};

/// Starts `workload` on all vcpus. Context: task or boot, once; all vcpus are up.
#[cfg(target_os = "none")]
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
#[cfg(target_os = "none")]
pub(crate) fn after_suspend() {
    pattern::verify();
}

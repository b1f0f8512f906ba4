//! What the kernel does once it is up.

#[cfg(target_os = "none")]
mod blackout;
#[cfg(target_os = "none")]
mod heartbeat;
mod numbers;
#[cfg(target_os = "none")]
mod pattern;
mod random;
#[cfg(target_os = "none")]
mod rounds;
#[cfg(target_os = "none")]
mod soak;
#[cfg(target_os = "none")]
mod user;
#[cfg(target_os = "none")]
mod vectors;

#[cfg(target_os = "none")]
use boot::Workload;
#[cfg(target_os = "none")]
use percpu::CpuSet;
#[cfg(target_os = "none")]
use smp::Outcome;

#[cfg(target_os = "none")]
pub(crate) use heartbeat::{start_beating, wrong_and_beats_racy};

/// Starts `workload` on all vcpus; what it draws at random follows from `seed`. Context: task or boot, once; all vcpus are up.
#[cfg(target_os = "none")]
pub(crate) fn start(workload: Workload, seed: u64) {
    match workload {
        Workload::Idle => {}
        Workload::Heartbeat => {
            heartbeat::start();
            pattern::start();
        }
        Workload::Blackout => blackout::start(),
        Workload::Vectors => vectors::start(),
        Workload::User => user::start(),
        Workload::Soak => {
            heartbeat::start();
            pattern::start();
            soak::start(seed);
        }
    }
}

/// These vcpus are about to go down. Context: task on vcpu 0.
#[cfg(target_os = "none")]
pub(crate) async fn vcpus_leave(cpus: &CpuSet) {
    soak::vcpus_leave(cpus).await;
}

/// vcpus have come up or gone down, or have been refused to. Context: task on vcpu 0.
#[cfg(target_os = "none")]
pub(crate) fn vcpus_changed() {
    pattern::vcpus_changed();
    soak::vcpus_changed();
}

/// What is known of a suspend when every vcpu is alive again.
#[cfg(target_os = "none")]
pub(crate) struct Over {
    pub(crate) outcome: Outcome,
    /// From the request to the hypercall, and from its return to here.
    pub(crate) prepare_ns: u64,
    pub(crate) resume_ns: u64,
    /// The hypercall, in ticks of the TSC.
    pub(crate) held_ticks: u64,
}

/// A suspend has been asked for; `in_user` vcpus were in user mode. Context: task on vcpu 0.
#[cfg(target_os = "none")]
pub(crate) fn before_suspend(in_user: usize) {
    blackout::suspend_is_asked();
    user::suspend_is_asked(in_user);
}

/// A restored or continued domain runs again: what is to be verified or told after that, is. Context: task on vcpu 0.
#[cfg(target_os = "none")]
pub(crate) fn after_suspend(over: Over) {
    pattern::verify();
    vectors::verify();
    user::verify();
    blackout::suspend_is_over(over);
}

/// The domain is about to be powered off. Context: task on vcpu 0.
#[cfg(target_os = "none")]
pub(crate) async fn end() {
    soak::end().await;
}

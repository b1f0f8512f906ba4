//! stasis: an SMP Xen PV guest kernel, made to be suspended. This is its only binary; it wires the other crates together.
//!
//! Start-up, in the order in which it happens:
//!
//! | step | where | needs |
//! |---|---|---|
//! | gs base, trap table | [`start`] | nothing |
//! | `start_info`, command line | `boot` | |
//! | direct map, W^X, heap | [`memory`] | `start_info` |
//! | console | [`console`] | direct map; what was said before comes out now |
//! | `shared_info`, `vcpu_info`, p2m published | [`cpus::start_boot_cpu`] | heap |
//! | virqs, IPI, timer of vcpu 0 | [`cpus`] | events |
//! | which other vcpus to start | [`hotplug`], a task from here on | xenstore |
//! | other vcpus | [`cpus::start_others`] | all of the above |
//! | what xenstore asks for, workload, test or benches | tasks | online |
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(any(test, target_os = "none"))]
extern crate alloc;

#[cfg(any(test, target_os = "none"))]
mod bench;
#[cfg(target_os = "none")]
mod check;
#[cfg(any(test, target_os = "none"))]
#[cfg_attr(not(target_os = "none"), expect(dead_code, reason = "the image uses all of it, the host tests a part"))]
mod console;
#[cfg(target_os = "none")]
mod control;
#[cfg(target_os = "none")]
mod cpus;
#[cfg(target_os = "none")]
mod devices;
#[cfg(target_os = "none")]
mod dump;
#[cfg(any(test, target_os = "none"))]
mod each;
#[cfg(target_os = "none")]
mod events;
#[cfg(target_os = "none")]
mod executor;
#[cfg(target_os = "none")]
mod freezer;
#[cfg(any(test, target_os = "none"))]
#[cfg_attr(not(target_os = "none"), expect(dead_code, reason = "the image uses all of it, the host tests a part"))]
mod given;
#[cfg(target_os = "none")]
mod heap;
#[cfg(target_os = "none")]
mod hotplug;
#[cfg(any(test, target_os = "none"))]
#[cfg_attr(not(target_os = "none"), expect(dead_code, reason = "the image uses all of it, the host tests a part"))]
mod logfmt;
#[cfg(target_os = "none")]
mod loopback;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod panic;
#[cfg(any(test, target_os = "none"))]
mod patience;
#[cfg(any(test, target_os = "none"))]
#[cfg_attr(not(target_os = "none"), expect(dead_code, reason = "the image uses all of it, the host tests a part"))]
mod reentry;
#[cfg(target_os = "none")]
mod relax;
#[cfg(any(test, target_os = "none"))]
mod run_queue;
#[cfg(target_os = "none")]
mod selftest;
#[cfg(target_os = "none")]
mod stacks;
#[cfg(target_os = "none")]
mod start;
#[cfg(target_os = "none")]
mod start_info;
#[cfg(target_os = "none")]
mod suspend;
#[cfg(target_os = "none")]
mod suspend_port;
#[cfg(target_os = "none")]
mod sysrq;
#[cfg(any(test, target_os = "none"))]
#[cfg_attr(not(target_os = "none"), expect(dead_code, reason = "the image uses all of it, the host tests a part"))]
mod time;
#[cfg(target_os = "none")]
mod timer;
#[cfg(any(test, target_os = "none"))]
mod trace;
#[cfg(target_os = "none")]
mod traps;
#[cfg(target_os = "none")]
mod user;
#[cfg(target_os = "none")]
mod vector;
#[cfg(target_os = "none")]
mod wait;
#[cfg(any(test, target_os = "none"))]
mod workload;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("stasis runs under Xen: cargo xtask image builds it, cargo xtask direct and cargo xtask run boot it");
    std::process::exit(2);
}

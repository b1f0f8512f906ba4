//! What the kernel shows of itself when it is asked to: the list of all ports, the dump of every vcpu.

use alloc::format;
use alloc::vec::Vec;

use percpu::CpuId;
use xen_sys::abi::xen::DOMID_SELF;
use xen_sys::hypercall::evtchn as hypercall;
use xen_sys::primitive::sync::atomic::{AtomicBool, Ordering};

use super::Verdict;
use crate::{cpus, dump, executor, timer};

/// Ports that no table of ours has, many more than their lines fit into the console's queue: all are listed, no line is lost. The
/// harness sees the lines.
pub(super) async fn many_ports() -> Verdict {
    const MANY: u32 = 2000;
    let before = dump::list_ports().await;
    let mut taken = Vec::new();
    for nr in 0..MANY {
        let port = hypercall::alloc_unbound(DOMID_SELF, DOMID_SELF);
        taken.push(port.map_err(|error| format!("alloc_unbound, after {nr}: {error}"))?);
    }
    let listed = dump::list_ports().await;
    for port in taken {
        hypercall::close(port).map_err(|error| format!("close of {port}: {error}"))?;
    }
    let after = dump::list_ports().await;
    if (listed.ports, listed.lost_lines) == (before.ports + MANY, 0) && after.ports == before.ports {
        Ok(format!("ports={}", listed.ports))
    } else {
        Err(format!(
            "{} ports are listed, then {} with {MANY} more, {} lines lost, then {}",
            before.ports, listed.ports, listed.lost_lines, after.ports
        ))
    }
}

/// A vcpu that takes no upcalls is named when it is asked again, holds up nobody, and answers once it has come back.
pub(super) async fn silent_vcpu() -> Verdict {
    static HANG: AtomicBool = AtomicBool::new(true);
    static HANGS: AtomicBool = AtomicBool::new(false);
    /// By then every vcpu that runs has dumped itself.
    const ENOUGH_NS: u64 = 500_000_000;
    if cpus::nr() == 1 {
        return Err("needs two vcpus".into());
    }
    let last = CpuId::new(cpus::nr() - 1).expect("there are not more vcpus than CPUs");
    executor::spawn_on(last, async {
        let masked = percpu::mask_upcalls();
        // ORDERING: Relaxed, flags; nothing is read because of them.
        HANGS.store(true, Ordering::Relaxed);
        while HANG.load(Ordering::Relaxed) {
            core::hint::spin_loop();
        }
        drop(masked);
    });
    // ORDERING: Relaxed, as above.
    while !HANGS.load(Ordering::Relaxed) {
        timer::sleep(1_000_000).await;
    }
    let mut silent = [0; 3];
    silent[0] = dump::every_cpu();
    timer::sleep(ENOUGH_NS).await;
    silent[1] = dump::every_cpu();
    HANG.store(false, Ordering::Relaxed); // ORDERING: Relaxed, as above.
    timer::sleep(ENOUGH_NS).await;
    silent[2] = dump::every_cpu();
    timer::sleep(ENOUGH_NS).await;
    if silent == [0, 1, 0] { Ok(format!("silent={last}")) } else { Err(format!("{silent:?} vcpus were silent")) }
}

//! What VIRQ_DEBUG shows: the vcpu's state, where its time went, its counts and its ports, a line each; vcpu 0
//! shows the console's and the store's counts too.
//!
//! In an upcall, where the console waits for nobody: lines for which there is no room are lost, and counted.

use percpu::CpuId;
use xen_sys::primitive::sync::atomic::Ordering;

use crate::{console, control, cpus, events, time};

/// Dumps the vcpu that this runs on. Context: any but quiesced.
pub(crate) fn this_cpu() {
    let cpu = percpu::current();
    let info = percpu::vcpu_info();
    // ORDERING: Relaxed all, to be printed only.
    crate::say!(
        "debug",
        cpu = cpu,
        state = cpus::state_racy(cpu),
        now_ns = time::now_ns(),
        system_ns = time::system_ns(),
        upcall_pending = info.evtchn_upcall_pending.load(Ordering::Relaxed),
        upcall_mask = info.evtchn_upcall_mask.load(Ordering::Relaxed),
        pending_sel = format_args!("{:#x}", info.evtchn_pending_sel.load(Ordering::Relaxed)),
        incarnation = events::get().incarnation(),
    );
    // ORDERING: Relaxed, to be printed only. Xen writes it while we do not run, so it is whole.
    let [running_ns, runnable_ns, blocked_ns, offline_ns] =
        [0, 1, 2, 3].map(|state: usize| percpu::area().runstate.time[state].load(Ordering::Relaxed));
    crate::say!(
        "debug-runstate",
        cpu = cpu,
        running_ns = running_ns,
        runnable_ns = runnable_ns,
        blocked_ns = blocked_ns,
        offline_ns = offline_ns,
    );
    if cpu == CpuId::BOOT {
        let counts = console::counts();
        crate::say!("debug-console", lost_lines = counts.lost_lines, bad_indices = counts.bad_indices);
        control::dump();
    }
    ports(cpu);
    let counts = events::get().counts_racy(cpu);
    crate::say!(
        "debug-counts",
        cpu = cpu,
        upcalls = counts.upcalls,
        spurious = counts.spurious,
        virqs = counts.virqs,
        ipis = counts.ipis,
        devices = counts.devices,
        unbound = counts.unbound,
        sent = counts.sent,
        stale_sends = counts.stale_sends,
        unbound_sends = counts.unbound_sends,
        refused_sends = counts.refused_sends,
    );
}

fn ports(cpu: CpuId) {
    for port in events::get().ports_racy(cpu) {
        let mut line = crate::logfmt::Line::new("debug-port");
        line.fields(format_args!("{port}"));
        console::print(&line);
    }
}

/// A line that was typed on the console. Context: task.
pub(crate) fn command(line: &str) {
    match line.trim() {
        "dump" => {
            for cpu in CpuId::first(cpus::nr()) {
                cpus::mail().run_on(cpu, &crate::relax::Processor, |_| this_cpu());
            }
        }
        "poweroff" => control::power_off("poweroff"),
        _ => crate::say!("usage", commands = "dump poweroff", typed = line),
    }
}

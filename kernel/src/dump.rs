//! What the kernel shows of itself when it is asked to: by VIRQ_DEBUG, by a letter in `control/sysrq`, or by a line typed on
//! the console.
//!
//! - *A vcpu*: its state, where its time went, its counts, and its ports as our tables have them; vcpu 0 shows the console's
//!   and the store's counts too. In an upcall on that vcpu.
//! - *All ports* of the domain, as Xen and our tables have them, in the order and the columns of Xen's debug key `e`. In a task
//!   on vcpu 0, which lets others run after each.
//!
//! VIRQ_DEBUG has both: where the tasks of vcpu 0 do not run any more, the upcalls show what they can. Xen sends it to every vcpu, but
//! vcpu 0 alone has a port for it and calls the others: Xen searches all ports of the domain for each that is bound, so
//! one more for each vcpu makes a resume of many of them longer by half. Where vcpu 0 takes no upcalls any more, nothing is shown.
//!
//! In an upcall the console waits for nobody: lines for which there is no room are lost, and counted. So each list of ports
//! ends with a line `debug-end` that says how many ports there were and how many lines were lost meanwhile, by anybody; and no
//! upcall shows more than [`SHOWN_MAX`] of them.

use evtchn::{PortKind, PortState, Step};
use percpu::{CpuId, PerCpu};
use smp::{CallNode, NotPosted};
use spin::Once;
use xen_sys::primitive::sync::atomic::Ordering;

use crate::{console, control, cpus, events, time, trace, wait};

/// Ports that one upcall shows. A vcpu has two of its own, vcpu 0 three; more are devices', and the list of all has those too.
const SHOWN_MAX: usize = 64;

/// One call to each vcpu. Suspend: *kept*, a call that was posted before is run after.
static NODES: Once<PerCpu<CallNode>> = Once::new();

/// Somebody wants the list of all ports.
static WANTED: wait::Flag = wait::Flag::new();

/// Makes what dumps need. Boot, once, before VIRQ_DEBUG is bound: an upcall allocates nothing.
pub(crate) fn init(nr_cpus: usize) {
    NODES.call_once(|| PerCpu::new(nr_cpus, |_| CallNode::new()));
}

/// VIRQ_DEBUG. Context: upcall of vcpu 0.
pub(crate) fn on_debug() {
    every_cpu();
    ask_for_ports();
}

/// Has all ports of the domain listed. Asking while a list is being made asks for one more, after it. Context: any; lock-free.
pub(crate) fn ask_for_ports() {
    WANTED.set();
}

/// Lists all ports of the domain whenever it is asked for.
pub(crate) async fn list_ports_when_asked() {
    loop {
        WANTED.wait().await;
        if !list_ports().await.whole {
            // A suspend came in between, and half of the list is of ports that are no more.
            ask_for_ports();
        }
    }
}

/// How a list of all ports went.
pub(crate) struct Listed {
    /// How many there were.
    pub(crate) ports: u32,
    /// Lines for which the console had no room meanwhile, by anybody.
    pub(crate) lost_lines: u64,
    /// They are all of one life of the domain.
    pub(crate) whole: bool,
}

/// Lists all ports of the domain. Context: task.
pub(crate) async fn list_ports() -> Listed {
    let events = events::get();
    let (lost_before, incarnation) = (console::counts().lost_lines, events.incarnation());
    crate::say!("debug-evtchn", abi = events.abi(), vcpus = cpus::nr(), incarnation = incarnation);
    let mut survey = events.survey();
    let mut ports = 0_u32;
    let mut whole = true;
    while whole {
        match survey.step() {
            Step::Port(mut port) => {
                if cpus::is_gate(port.nr) {
                    port.kind = PortKind::Polled;
                }
                print_port(&port);
                ports += 1;
            }
            Step::Nothing => {}
            Step::End => break,
        }
        wait::yield_now().await;
        whole = events.incarnation() == incarnation;
    }
    let lost_lines = console::counts().lost_lines - lost_before;
    crate::say!("debug-end", ports = ports, lost_lines = lost_lines, whole = u8::from(whole));
    Listed { ports, lost_lines, whole }
}

fn print_port(port: &PortState) {
    let mut line = crate::logfmt::Line::new("debug-port");
    line.fields(format_args!("{port}"));
    console::print(&line);
}

/// Has every vcpu that is up dump itself, and waits for none; one that is down, and one that has not done so since it was asked last is named. Returns how many
/// those are. Context: task, or an upcall.
pub(crate) fn every_cpu() -> usize {
    let Some(nodes) = NODES.get() else { return 0 };
    let mut silent = 0;
    for (cpu, node) in nodes.iter() {
        match cpus::mail().call(cpu, node, |_, _| this_cpu(), 0) {
            // Who asks sees the lines; nobody waits here for the end of the call.
            Ok(pending) => drop(pending),
            Err(NotPosted::Busy) => {
                crate::say!("debug-silent", cpu = cpu);
                silent += 1;
            }
            Err(NotPosted::Down) => crate::say!("debug", cpu = cpu, state = "down"),
        }
    }
    silent
}

/// Dumps the vcpu that this runs on. Context: any but quiesced.
fn this_cpu() {
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
        muted = counts.muted,
        forwarded = counts.forwarded,
        sent = counts.sent,
        stale_sends = counts.stale_sends,
        unbound_sends = counts.unbound_sends,
        refused_sends = counts.refused_sends,
    );
}

fn ports(cpu: CpuId) {
    let lost_before = console::counts().lost_lines;
    let mut ports = 0;
    for port in events::get().ports_racy(cpu) {
        if ports < SHOWN_MAX {
            print_port(&port);
        }
        ports += 1;
    }
    let lost_lines = console::counts().lost_lines - lost_before;
    crate::say!("debug-end", cpu = cpu, ports = ports, shown = ports.min(SHOWN_MAX), lost_lines = lost_lines);
}

/// A line that was typed on the console. Context: task.
pub(crate) fn command(line: &str) {
    match line.trim() {
        "dump" => {
            every_cpu();
        }
        "evtchn" => ask_for_ports(),
        "phases" => trace::ask(),
        "poweroff" => control::power_off("poweroff"),
        _ => crate::say!("usage", commands = "dump evtchn phases poweroff", typed = line),
    }
}

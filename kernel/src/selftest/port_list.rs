//! The list of all ports of the domain.

use alloc::format;
use alloc::vec::Vec;

use xen_sys::abi::xen::DOMID_SELF;
use xen_sys::hypercall::evtchn as hypercall;

use super::Verdict;
use crate::dump;

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

//! Errors: which operation failed, on what, and Xen's number where Xen refused.
#![forbid(unsafe_code)]

use core::fmt;

use percpu::CpuId;
use xen_sys::Errno;

use crate::intent::Intent;
use crate::port::{Port, PortNr};

/// A life of the domain could not begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttachError {
    /// The operation on event channels that failed.
    pub what: &'static str,
    /// Xen's reason. `ENOSYS`: a Xen without the FIFO ABI.
    pub errno: Errno,
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.errno)
    }
}

impl core::error::Error for AttachError {}

/// A CPU's intents could not be bound. Nothing is bound on it then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BindError {
    /// The batch has no room for another request.
    BatchFull {
        /// Bound for whom.
        cpu: CpuId,
    },
    /// Xen refused.
    Refused {
        /// Bound for whom.
        cpu: CpuId,
        /// The first that was refused.
        intent: Intent,
        /// Xen's reason. `ENOSPC`: the domain has no free port (`max_event_channels`); `EEXIST`: bound already.
        errno: Errno,
    },
    /// Xen gave a port that cannot be used: 0, beyond the ABI, or one that has just been given for something else.
    BadPort {
        /// Bound for whom.
        cpu: CpuId,
        /// For what.
        intent: Intent,
        /// The number that Xen gave.
        nr: u32,
    },
    /// Xen refused this CPU's control block, or the page with the words of a port.
    Fifo {
        /// Bound for whom.
        cpu: CpuId,
        /// The operation that failed.
        what: &'static str,
        /// Xen's reason.
        errno: Errno,
    },
    /// The plan was made before a restore, or on another CPU, or no `shared_info` is attached.
    StalePlan {
        /// Who tried.
        cpu: CpuId,
    },
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BindError::BatchFull { cpu } => write!(f, "bind on cpu {cpu}: batch full"),
            BindError::Refused { cpu, intent, errno } => write!(f, "bind {intent} on cpu {cpu}: {errno}"),
            BindError::BadPort { cpu, intent, nr } => write!(f, "bind {intent} on cpu {cpu}: bad port {nr}"),
            BindError::Fifo { cpu, what, errno } => write!(f, "{what} for cpu {cpu}: {errno}"),
            BindError::StalePlan { cpu } => write!(f, "bind on cpu {cpu}: stale plan"),
        }
    }
}

impl core::error::Error for BindError {}

/// A device port could not be bound or unbound. Nothing is bound or unbound then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceError {
    /// The port lies beyond the ABI, or Xen refused the page with its event word.
    NoSuchPort {
        /// Which.
        nr: PortNr,
        /// Why. `ENOSPC`: beyond the ABI.
        errno: Errno,
    },
    /// Another action, or an intent of that CPU or of vCPU 0, has the port; or its last action may still be running.
    PortTaken {
        /// Which.
        nr: PortNr,
    },
    /// The action has a port already.
    ActionTaken {
        /// The one asked for.
        nr: PortNr,
        /// The one that it has.
        has: Port,
    },
    /// The CPU has not bound its intents in this life of the domain, so its tables are not to be touched yet.
    CpuNotReady {
        /// The one asked for.
        nr: PortNr,
        /// Whose tables.
        cpu: CpuId,
    },
    /// FIFO ABI: an event of the port's earlier use still stands in a queue. The CPU of that queue takes it off with its
    /// next upcall, which is due; try again then.
    StillQueued {
        /// Which.
        nr: PortNr,
    },
    /// The binding is of an earlier life of the domain: the port is gone.
    NotBound,
    /// `EVTCHNOP_bind_vcpu` failed.
    Route {
        /// Which.
        nr: PortNr,
        /// Where to.
        cpu: CpuId,
        /// Xen's reason.
        errno: Errno,
    },
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceError::NoSuchPort { nr, errno: Errno::ENOSPC } => write!(f, "bind port {nr}: beyond the ABI"),
            DeviceError::NoSuchPort { nr, errno } => write!(f, "bind port {nr}: expand_array: {errno}"),
            DeviceError::PortTaken { nr } => write!(f, "bind port {nr}: taken"),
            DeviceError::ActionTaken { nr, has } => write!(f, "bind port {nr}: the action has port {has}"),
            DeviceError::CpuNotReady { nr, cpu } => {
                write!(f, "port {nr}: cpu {cpu} has bound nothing of its own yet in this life of the domain")
            }
            DeviceError::StillQueued { nr } => write!(f, "bind port {nr}: an old event still stands in a queue"),
            DeviceError::NotBound => f.write_str("the port is one of before the restore"),
            DeviceError::Route { nr, cpu, errno } => write!(f, "route port {nr} to cpu {cpu}: {errno}"),
        }
    }
}

impl core::error::Error for DeviceError {}

/// What became of a send.
#[must_use = "an event that was not sent must be made up for"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SendOutcome {
    /// Xen took it.
    Sent,
    /// The CPU has no port for this ipi in this life of the domain: it is not started, or not restored yet. It looks
    /// at its inbox once when it is.
    Unbound,
    /// The port belongs to an earlier life of the domain. Nothing was done.
    Stale,
    /// Xen refused.
    Refused(Errno),
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::intent::Virq;

    #[test]
    fn errors_name_operation_object_and_errno() {
        let (cpu, intent) = (CpuId::BOOT, Intent::Virq(Virq::TIMER));
        let refused = BindError::Refused { cpu, intent, errno: Errno::ENOSPC }.to_string();
        assert!(refused.starts_with("bind timer on cpu 0: ENOSPC"), "{refused}");
        let nr = PortNr::new(7).expect("7 is not 0");
        let route = DeviceError::Route { nr, cpu, errno: Errno::EINVAL }.to_string();
        assert!(route.starts_with("route port 7 to cpu 0: EINVAL"), "{route}");
    }
}

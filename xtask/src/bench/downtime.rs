//! What a suspend costs a guest's tasks: the figures that both guests tell, and what comes of them.
//!
//! Owns the words for it. Pure: text and figures in, text out; suspending is `commands::bench_downtime`'s. All figures are ticks of
//! one TSC until they are shown. Turned down: nanoseconds from the guests; each converts with the factor that Xen last gave it, and
//! under emulation that is off by a percent, which of a second in a save is more than all that the guest does.

pub mod plot;
pub mod record;
pub mod said;
pub mod table;

use clap::ValueEnum;

use super::Side;
use crate::drive::cycles::Kind;

/// Xen's schedulers that guests meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sched {
    /// The default since 4.12.
    Credit2,
    /// The one before it, with time slices of 30 ms.
    Credit,
}

impl Sched {
    /// As Xen's command line and `xl info` spell it.
    pub fn name(self) -> &'static str {
        match self {
            Sched::Credit2 => "credit2",
            Sched::Credit => "credit",
        }
    }
}

/// One suspend as a guest tells it, in ticks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspended {
    /// It went on in the same domain.
    pub continued: bool,
    /// From the request that was seen to the hypercall.
    pub prepare: u64,
    /// The hypercall.
    pub held: u64,
    /// From its return until all vCPUs are alive, or all processes thawed.
    pub resume: u64,
    /// Each vCPU's largest gap between two readings since the request.
    pub gaps: Vec<u64>,
}

impl Suspended {
    /// The gap of the vCPU that had the largest.
    pub fn worst(&self) -> u64 {
        self.gaps.iter().max().copied().unwrap_or(0)
    }

    /// What of that gap the guest is to blame for.
    pub fn seen_of_guest(&self) -> u64 {
        self.worst().saturating_sub(self.held)
    }

    /// What the guest itself needed, by its own account.
    pub fn said_of_guest(&self) -> u64 {
        self.prepare + self.resume
    }
}

/// The least of several times, the middle one, and the greatest; in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// The least.
    pub min: u64,
    /// The middle one.
    pub p50: u64,
    /// The greatest.
    pub max: u64,
}

/// Stopping all other vCPUs for nothing, again and again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stops {
    /// How often.
    pub n: u64,
    /// From the call until all are stopped.
    pub stopped: Times,
    /// From the call to its return.
    pub whole: Times,
}

/// All that one boot of one guest told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Under which scheduler.
    pub sched: Sched,
    /// From 1.
    pub round: u32,
    /// How many it had.
    pub vcpus: u32,
    /// Whose.
    pub side: Side,
    /// The rendezvous alone.
    pub stops: Stops,
    /// Each suspend, in order.
    pub suspends: Vec<(Kind, Suspended)>,
}

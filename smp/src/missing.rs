//! [`Missing`]: who did not come to a rendezvous, or does not go down, for the one who asked for it and for people. A value; any context.
#![forbid(unsafe_code)]

use core::fmt;

use percpu::CpuSet;

/// What the leader was waiting for when its time was up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Awaited {
    /// That they leave the last rendezvous.
    Leaving,
    /// That they come.
    Arriving,
    /// That they stop.
    Stopping,
    /// That they go down, as they were told to in a rendezvous that is over.
    GoingDown,
}

/// Not every vcpu came in time. A rendezvous is cancelled: those that came, and those that come late, go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missing {
    /// In which step.
    pub awaited: Awaited,
    /// Who.
    pub cpus: CpuSet,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (of, step) = match self.awaited {
            Awaited::Leaving => ("rendezvous", "leave the last rendezvous"),
            Awaited::Arriving => ("rendezvous", "arrive"),
            Awaited::Stopping => ("rendezvous", "stop"),
            Awaited::GoingDown => ("hotplug", "go down"),
        };
        write!(f, "{of}: vcpus {} did not {step} in time", self.cpus)
    }
}

impl core::error::Error for Missing {}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn names_step_and_vcpus() {
        let missing = |awaited| Missing { awaited, cpus: CpuSet::first(3) }.to_string();
        assert_eq!(missing(Awaited::Arriving), "rendezvous: vcpus 0-2 did not arrive in time");
        assert_eq!(missing(Awaited::Stopping), "rendezvous: vcpus 0-2 did not stop in time");
        assert_eq!(missing(Awaited::GoingDown), "hotplug: vcpus 0-2 did not go down in time");
        assert_eq!(missing(Awaited::Leaving), "rendezvous: vcpus 0-2 did not leave the last rendezvous in time");
    }
}

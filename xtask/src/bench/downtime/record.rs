//! The record of a run, for machines: every suspend with every vCPU's gap, as JSON.

#![forbid(unsafe_code)]

use serde_json::{Value, json};

use super::{Boot, Times};

/// What is known of the circumstances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circumstances {
    /// Where it ran, under each scheduler: Xen's version, processors.
    pub places: Vec<String>,
    /// Ticks of the TSC in a millisecond, as Xen has measured it.
    pub tsc_khz: u64,
    /// Memory of each guest.
    pub memory_mib: u32,
    /// Whether time was instructions.
    pub deterministic: bool,
}

/// The whole record.
pub fn record(circumstances: &Circumstances, boots: &[Boot]) -> Value {
    let times = |of: Times| json!({ "min": of.min, "p50": of.p50, "max": of.max });
    let boots: Vec<Value> = boots
        .iter()
        .map(|boot| {
            let suspends: Vec<Value> = boot
                .suspends
                .iter()
                .map(|(kind, s)| {
                    json!({
                        "how": kind.name(), "prepare": s.prepare, "held": s.held, "resume": s.resume, "gaps": s.gaps,
                    })
                })
                .collect();
            json!({
                "sched": boot.sched.name(), "round": boot.round, "vcpus": boot.vcpus, "side": boot.side.name(),
                "stop_machine": {
                    "n": boot.stops.n, "stopped": times(boot.stops.stopped), "whole": times(boot.stops.whole),
                },
                "suspends": suspends,
            })
        })
        .collect();
    json!({
        "places": circumstances.places,
        "tsc_khz": circumstances.tsc_khz,
        "memory_mib": circumstances.memory_mib,
        "deterministic": circumstances.deterministic,
        "unit": "cycles",
        "boots": boots,
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::Side;
    use super::super::{Sched, Stops, Suspended};
    use super::*;
    use crate::drive::cycles::Kind;

    #[test]
    fn every_gap_is_kept() {
        let places = vec!["here".into()];
        let circumstances = Circumstances { places, tsc_khz: 2_000_000, memory_mib: 64, deterministic: true };
        let suspended = Suspended { held: 5, gaps: vec![7, u64::MAX], ..Suspended::default() };
        let stops = Stops { n: 3, stopped: Times { min: 1, p50: 2, max: 3 }, ..Stops::default() };
        let suspends = vec![(Kind::Migrate, suspended)];
        let boot = Boot { sched: Sched::Credit, round: 1, vcpus: 2, side: Side::Linux, stops, suspends };
        let value = record(&circumstances, &[boot]);
        let boot = &value["boots"][0];
        assert_eq!((boot["sched"].as_str(), boot["side"].as_str()), (Some("credit"), Some("linux")));
        assert_eq!(boot["suspends"][0]["gaps"][1].as_u64(), Some(u64::MAX));
        assert_eq!(boot["stop_machine"]["stopped"]["p50"].as_u64(), Some(2));
        assert_eq!((value["tsc_khz"].as_u64(), value["deterministic"].as_bool()), (Some(2_000_000), Some(true)));
    }
}

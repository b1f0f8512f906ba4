//! The record of a run, for machines: everything that was heard, histograms included, as JSON.
//!
//! Owns the file's form. Pure. Turned down: serde's derive, for one shape that is written and never read here.

#![forbid(unsafe_code)]

use serde_json::{Value, json};

use super::Run;

/// What is known of the circumstances.
#[derive(Clone, Debug)]
pub struct Circumstances {
    /// Where it ran: Xen's version, processors.
    pub place: String,
    /// vCPUs of each guest.
    pub vcpus: u32,
    /// Whether time was instructions.
    pub deterministic: bool,
}

/// The whole record.
pub fn record(circumstances: &Circumstances, runs: &[Run]) -> Value {
    let runs: Vec<Value> = runs
        .iter()
        .map(|run| {
            let benches: Vec<Value> = run
                .figures
                .iter()
                .map(|f| {
                    json!({
                        "name": f.name, "variant": f.variant, "abi": f.abi, "n": f.n, "min": f.min, "p50": f.p50,
                        "p90": f.p90, "p99": f.p99, "p999": f.p999, "max": f.max, "buckets": f.buckets,
                    })
                })
                .collect();
            json!({ "round": run.round, "side": run.side.name(), "benches": benches })
        })
        .collect();
    json!({
        "place": circumstances.place,
        "vcpus": circumstances.vcpus,
        "deterministic": circumstances.deterministic,
        "unit": "cycles",
        "runs": runs,
    })
}

#[cfg(test)]
mod tests {
    use super::super::Side;
    use super::super::said::Figures;
    use super::*;

    #[test]
    fn histograms_are_kept_whole() {
        let figures =
            Figures { name: "drain".into(), n: 3, buckets: vec![(64, 1), (u64::MAX, 2)], ..Figures::default() };
        let circumstances = Circumstances { place: "here".into(), vcpus: 2, deterministic: true };
        let value = record(&circumstances, &[Run { round: 1, side: Side::Linux, figures: vec![figures] }]);
        let run = &value["runs"][0];
        assert_eq!((run["side"].as_str(), run["round"].as_u64()), (Some("linux"), Some(1)));
        assert_eq!(run["benches"][0]["buckets"][1][0].as_u64(), Some(u64::MAX));
        assert_eq!(value["deterministic"].as_bool(), Some(true));
    }
}

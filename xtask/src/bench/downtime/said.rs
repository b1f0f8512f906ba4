//! Hears a guest that tells what its suspends cost: `kernel/src/workload/blackout.rs`, and the peer's `downtime.c`.
//!
//! Owns what these lines must hold. Pure. Checked is all that can be: gaps of every vCPU, in order, and the greatest of them as the
//! guest has it; a TSC that Xen does not emulate; and that no vCPU's gap is shorter than the hypercall, in which nobody ran.

#![forbid(unsafe_code)]

use super::super::Side;
use super::super::said::{Broken, number, parse, value};
use super::{Stops, Suspended, Times};
use crate::logfmt::Line;

/// What a line told.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing of ours, or not yet all of it.
    Nothing,
    /// It has measured its rendezvous, and its tasks read the clock: it may be suspended.
    Ready(Stops),
    /// A suspend is over, and every task has read the clock since.
    Suspended(Suspended),
    /// Something did not work in the guest: the line.
    Wrong(String),
}

/// Hears one boot.
#[derive(Debug)]
pub struct Listener {
    side: Side,
    vcpus: u32,
    stops: Option<Stops>,
    gaps: Vec<u64>,
}

impl Listener {
    /// For a guest of this side that was given `vcpus`.
    pub fn new(side: Side, vcpus: u32) -> Listener {
        Listener { side, vcpus, stops: None, gaps: Vec::new() }
    }

    /// Takes one console line.
    ///
    /// # Errors
    /// Where a line of this side about suspends is not what it must be.
    pub fn take(&mut self, text: &str) -> Result<Heard, Broken> {
        let line = match parse(self.side, text) {
            Some(Ok(line)) => line,
            // Others' lines are others' to judge.
            Some(Err(_)) | None => return Ok(Heard::Nothing),
        };
        let text = text.trim_end();
        self.hear(&line, text).map_err(|why| Broken { line: text.to_owned(), why })
    }

    fn hear(&mut self, line: &Line, text: &str) -> Result<Heard, String> {
        match line.event.as_str() {
            "stop-machine" => {
                self.is_of_all(line)?;
                is_native(line)?;
                self.stops = Some(Stops {
                    n: number(line, "n")?,
                    stopped: times(line, ["stopped_min", "stopped_p50", "stopped_max"])?,
                    whole: times(line, ["whole_min", "whole_p50", "whole_max"])?,
                });
                Ok(Heard::Nothing)
            }
            "blackout-ready" => {
                self.is_of_all(line)?;
                self.stops.map(Heard::Ready).ok_or_else(|| "it has not told of its rendezvous".to_owned())
            }
            "blackout-gaps" => {
                let (first, heard) = (number(line, "first")?, self.gaps.len());
                if u64::try_from(heard) != Ok(first) {
                    return Err(format!("gaps from vCPU {first} on after those of {heard}"));
                }
                self.gaps.extend(gaps(value(line, "gaps")?)?);
                Ok(Heard::Nothing)
            }
            "blackout" => {
                let gaps = std::mem::take(&mut self.gaps);
                self.suspended(line, gaps).map(Heard::Suspended)
            }
            "stop-machine-error" | "downtime-error" | "suspend-abort" => Ok(Heard::Wrong(text.to_owned())),
            _ => Ok(Heard::Nothing),
        }
    }

    fn suspended(&self, line: &Line, gaps: Vec<u64>) -> Result<Suspended, String> {
        self.is_of_all(line)?;
        is_native(line)?;
        let continued = match value(line, "outcome")? {
            "continued" => true,
            "resumed" => false,
            other => return Err(format!("{other} is no outcome")),
        };
        let [prepare, held, resume] = ["prepare", "held", "resume"].map(|key| number(line, key));
        let suspended = Suspended { continued, prepare: prepare?, held: held?, resume: resume?, gaps };
        if u32::try_from(suspended.gaps.len()) != Ok(self.vcpus) {
            return Err(format!("gaps of {} vCPUs were heard", suspended.gaps.len()));
        }
        if number(line, "max")? != suspended.worst() {
            return Err(format!("the largest gap that was heard is {}", suspended.worst()));
        }
        match suspended.gaps.iter().position(|gap| *gap < suspended.held) {
            Some(vcpu) => Err(format!("vCPU {vcpu} says it ran within the hypercall")),
            None => Ok(suspended),
        }
    }

    fn is_of_all(&self, line: &Line) -> Result<(), String> {
        let said = number(line, "vcpus")?;
        if said == u64::from(self.vcpus) { Ok(()) } else { Err(format!("it was given {} vCPUs", self.vcpus)) }
    }
}

/// Ticks of a TSC that Xen emulates are those of Xen's own clock, and each reading is a trap.
fn is_native(line: &Line) -> Result<(), String> {
    match (value(line, "unit")?, value(line, "tsc")?) {
        ("cycles", "native") => Ok(()),
        (unit, tsc) => Err(format!("figures are in cycles of a native TSC, not in {unit} of one that is {tsc}")),
    }
}

fn times(line: &Line, keys: [&str; 3]) -> Result<Times, String> {
    let [min, p50, max] = keys.map(|key| number(line, key));
    let (min, p50, max) = (min?, p50?, max?);
    if [min, p50, max].is_sorted() {
        Ok(Times { min, p50, max })
    } else {
        Err(format!("{} do not rise", keys.join(", ")))
    }
}

fn gaps(text: &str) -> Result<Vec<u64>, String> {
    text.split(',').map(|gap| gap.parse().map_err(|_| format!("{gap:?} is no number"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOPS: &str = "stop-machine vcpus=3 n=30 unit=cycles tsc=native stopped_min=1 stopped_p50=2 stopped_max=3 \
                         whole_min=4 whole_p50=5 whole_max=6";
    const READY: &str = "blackout-ready vcpus=3 period_ns=200000";
    const GAPS: [&str; 2] = ["blackout-gaps first=0 gaps=70,90", "blackout-gaps first=2 gaps=80"];
    const END: &str = "blackout outcome=resumed vcpus=3 unit=cycles tsc=native prepare=7 held=50 resume=8 max=90";

    fn feed(listener: &mut Listener, lines: &[&str]) -> Result<Heard, Broken> {
        let prefix = listener.side.prefix();
        let mut heard = Heard::Nothing;
        for line in lines {
            heard = listener.take(&format!("{prefix}{line}"))?;
        }
        Ok(heard)
    }

    #[test]
    fn either_side_tells_the_same() {
        let times = |min, p50, max| Times { min, p50, max };
        let stops = Stops { n: 30, stopped: times(1, 2, 3), whole: times(4, 5, 6) };
        let suspended = Suspended { continued: false, prepare: 7, held: 50, resume: 8, gaps: vec![70, 90, 80] };
        for side in [Side::Stasis, Side::Linux] {
            let mut listener = Listener::new(side, 3);
            assert_eq!(listener.take("Linux version 6.1"), Ok(Heard::Nothing));
            assert_eq!(feed(&mut listener, &[STOPS, READY]), Ok(Heard::Ready(stops)));
            for _ in 0..2 {
                let heard = feed(&mut listener, &[GAPS[0], "other x=1", GAPS[1], END]);
                assert_eq!(heard, Ok(Heard::Suspended(suspended.clone())), "{side:?}");
            }
        }
        assert_eq!((suspended.worst(), suspended.seen_of_guest(), suspended.said_of_guest()), (90, 40, 15));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let emulated = END.replace("native", "emulated");
        let of_others = END.replace("vcpus=3", "vcpus=2");
        let wrong_max = END.replace("max=90", "max=91");
        let within = END.replace("held=50", "held=71");
        for (lines, why) in [
            (&[READY][..], "not told of its rendezvous"),
            (&[GAPS[1]], "gaps from vCPU 2 on after those of 0"),
            (&[GAPS[0], END], "gaps of 2 vCPUs"),
            (&["blackout-gaps first=0 gaps=1,x"], "\"x\" is no number"),
            (&[GAPS[0], GAPS[1], &emulated], "native"),
            (&[GAPS[0], GAPS[1], &of_others], "given 3 vCPUs"),
            (&[GAPS[0], GAPS[1], &wrong_max], "largest gap that was heard is 90"),
            (&[GAPS[0], GAPS[1], &within], "vCPU 0 says it ran within the hypercall"),
            (&["stop-machine vcpus=3 n=1 unit=cycles tsc=native stopped_min=2 stopped_p50=1 stopped_max=3"], "rise"),
        ] {
            let broken = feed(&mut Listener::new(Side::Stasis, 3), lines).expect_err(why);
            assert!(broken.why.contains(why), "{broken}");
        }
    }

    #[test]
    fn a_guest_that_could_not_says_so() {
        for line in ["downtime-error what=insmod errno=2", "suspend-abort reason=rendezvous missing=3"] {
            let heard = feed(&mut Listener::new(Side::Linux, 3), &[line]);
            assert_eq!(heard, Ok(Heard::Wrong(format!("peer: {line}"))));
        }
    }
}

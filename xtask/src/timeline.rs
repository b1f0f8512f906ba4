//! What each vCPU did when in a suspend, as the guest tells it under `trace=suspend` or when `phases` is typed.
//!
//! Owns the reading of those lines; [`picture`] draws them. Pure. The names of what is reached are the kernel's own
//! ([`Mark`]): one that is not known here is passed over, as the contract may grow.

#![forbid(unsafe_code)]

mod legend;
pub mod picture;
mod scale;
mod shapes;
mod style;

use smp::trace::{Mark, Span, spans};

use crate::logfmt::Line;

/// One vCPU in one suspend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    /// Its number.
    pub vcpu: u32,
    /// What it reached, and when, in ns since the suspend was asked for; in the order in which the guest tells it.
    pub marks: Vec<(Mark, u64)>,
}

impl Lane {
    /// When it reached `mark` first.
    pub fn at(&self, mark: Mark) -> Option<u64> {
        self.marks.iter().find(|(reached, _)| *reached == mark).map(|(_, ns)| *ns)
    }
}

/// One suspend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    /// The guest's number for it, from 1.
    pub suspend: u64,
    /// `resumed`, `continued` or `aborted`.
    pub outcome: String,
    /// A lane for each vCPU that had part in it, in their order.
    pub lanes: Vec<Lane>,
}

impl Timeline {
    /// When vCPU 0 reached `mark`.
    pub fn at(&self, mark: Mark) -> Option<u64> {
        self.lanes.iter().find(|lane| lane.vcpu == 0)?.at(mark)
    }

    /// What `lane` spent its time on.
    pub fn spans(&self, lane: &Lane) -> Vec<Span> {
        spans(lane.marks.iter().copied(), self.at(Mark::AllReleased)).collect()
    }
}

/// The timelines that one guest has told so far.
#[derive(Clone, Debug, Default)]
pub struct Timelines {
    told: Vec<Timeline>,
    telling: Option<Timeline>,
}

impl Timelines {
    /// Those that have been told to their end.
    pub fn told(&self) -> &[Timeline] {
        &self.told
    }

    /// Takes in a line; any that tells of something else changes nothing.
    ///
    /// # Errors
    /// What is wrong with one that does tell of it.
    pub fn take(&mut self, line: &Line) -> Result<(), String> {
        match line.event.as_str() {
            "phases" => {
                let suspend: u64 = number(line, "suspend")?;
                let outcome = line.get("outcome").ok_or("`phases` without `outcome=`")?.to_owned();
                // Number 0 says that there is none to tell of.
                self.telling = (suspend != 0).then_some(Timeline { suspend, outcome, lanes: Vec::new() });
                Ok(())
            }
            "phase" => {
                let timeline = self.telling_of(line)?;
                let lane = Lane { vcpu: number(line, "vcpu")?, marks: marks(line)? };
                if timeline.lanes.last().is_some_and(|last| last.vcpu >= lane.vcpu) {
                    return Err(format!("vCPU {} is out of order", lane.vcpu));
                }
                timeline.lanes.push(lane);
                Ok(())
            }
            "phases-end" => {
                let lines: usize = number(line, "lines")?;
                let heard = self.telling_of(line)?.lanes.len();
                // Lines that the console had no room for are counted by the guest, and no breach.
                if heard != lines && line.get("lost_lines") == Some("0") {
                    return Err(format!("{heard} lines came"));
                }
                let whole = self.telling.take().filter(|_| heard == lines);
                self.told.extend(whole);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn telling_of(&mut self, line: &Line) -> Result<&mut Timeline, String> {
        let suspend: u64 = number(line, "suspend")?;
        let telling = self.telling.as_mut().filter(|timeline| timeline.suspend == suspend);
        telling.ok_or_else(|| format!("no `phases suspend={suspend}` came before"))
    }
}

fn number<T: std::str::FromStr>(line: &Line, key: &str) -> Result<T, String> {
    let value = line.get(key).ok_or_else(|| format!("no `{key}=`"))?;
    value.parse().map_err(|_| format!("`{key}={value}` cannot be read"))
}

fn marks(line: &Line) -> Result<Vec<(Mark, u64)>, String> {
    let mut marks = Vec::new();
    for (key, value) in &line.pairs {
        if let Some(mark) = key.strip_suffix("_ns").and_then(Mark::by_name) {
            marks.push((mark, value.parse().map_err(|_| format!("`{key}={value}` cannot be read"))?));
        }
    }
    Ok(marks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(timelines: &mut Timelines, text: &str) -> Result<(), String> {
        timelines.take(&Line::parse(text).expect("ours").expect("well formed"))
    }

    const HEAD: &str = "stasis: phases suspend=2 outcome=resumed vcpus=2 asked_at_ns=99";
    const ZERO: &str = "stasis: phase suspend=2 vcpu=0 asked_ns=0 suspending_ns=50 back_ns=900 all_released_ns=950";
    const ONE: &str = "stasis: phase suspend=2 vcpu=1 parked_ns=20 lunch_ns=30 arrived_ns=40 released_ns=960";
    const END: &str = "stasis: phases-end suspend=2 lines=2 lost_lines=0";

    #[test]
    fn a_timeline_is_read() {
        let mut timelines = Timelines::default();
        for text in [HEAD, "stasis: phase-stage suspend=2 stage=gather", ZERO, "stasis: heartbeat seq=1", ONE] {
            assert_eq!(take(&mut timelines, text), Ok(()), "{text}");
            assert!(timelines.told().is_empty(), "it has not ended");
        }
        assert_eq!(take(&mut timelines, END), Ok(()));
        let [timeline] = timelines.told() else { panic!("one: {timelines:?}") };
        assert_eq!((timeline.suspend, timeline.outcome.as_str(), timeline.lanes.len()), (2, "resumed", 2));
        assert_eq!((timeline.at(Mark::Back), timeline.at(Mark::Parked)), (Some(900), None));
        let one = &timeline.lanes[1];
        assert_eq!(one.marks, [(Mark::Parked, 20), (Mark::Arrived, 40), (Mark::Released, 960)]);
        let lengths: Vec<u64> = timeline.spans(one).iter().map(Span::ns).collect();
        assert_eq!(lengths, [20, 910, 10], "what it stood still for ends with the release");
    }

    #[test]
    fn nothing_to_tell_is_no_timeline() {
        let mut timelines = Timelines::default();
        assert_eq!(take(&mut timelines, "stasis: phases suspend=0 outcome=none"), Ok(()));
        assert!(timelines.told().is_empty());
    }

    #[test]
    fn one_with_lost_lines_is_left_out() {
        let mut timelines = Timelines::default();
        for text in [HEAD, ZERO, "stasis: phases-end suspend=2 lines=2 lost_lines=1"] {
            assert_eq!(take(&mut timelines, text), Ok(()), "{text}");
        }
        assert!(timelines.told().is_empty());
    }

    #[test]
    fn what_cannot_be_is_a_breach() {
        for (before, text) in [
            (&[][..], ONE),
            (&[HEAD, ONE], ZERO),
            (&[HEAD, ZERO], END),
            (&[HEAD], "stasis: phase suspend=3 vcpu=0"),
            (&[HEAD], "stasis: phase suspend=2 vcpu=x"),
            (&[HEAD], "stasis: phase suspend=2 vcpu=0 back_ns=-1"),
            (&[], "stasis: phases suspend=2"),
        ] {
            let mut timelines = Timelines::default();
            for text in before {
                assert_eq!(take(&mut timelines, text), Ok(()), "{text}");
            }
            assert!(take(&mut timelines, text).is_err(), "{text}");
        }
    }
}

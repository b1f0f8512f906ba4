//! Judges a kernel booted as Xen's initial domain: when is the run over, and was it good?
//!
//! Owns the goal of such a run, taken from the kernel's command line. Pure: lines in, a verdict out.
//! The domain cannot be asked anything (there is no xenstore), so its words are all there is. Turned
//! down: a fixed time to run; on a busy machine it is too short and on a quiet one it is wasted.

#![forbid(unsafe_code)]

use std::ops::ControlFlow;

use crate::contract::Event;
use crate::drive::cycles::beats_under;
use crate::drive::watch::{Failure, Watch};

/// When a run has reached what it was for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// This self-test has given its verdict.
    Test(String),
    /// The kernel has named its self-tests (`test=list`), or its benches (`bench=list`), and shut down.
    List,
    /// The kernel has run all benches that were asked for, and no figure that it counts was missed.
    Benches,
    /// So many heartbeats of all vCPUs have come.
    Beats(u32),
    /// All vCPUs are online.
    Online,
    /// It has shut down, or Xen ended it: whatever it says is to be looked at.
    End,
}

impl Goal {
    /// The goal that goes with a command line.
    pub fn from_cmdline(cmdline: &str, beats: u32) -> Goal {
        let value = |key: &str| cmdline.split_whitespace().find_map(|word| word.strip_prefix(key));
        match (value("test="), value("bench=")) {
            (Some("list"), _) | (None, Some("list")) => Goal::List,
            (Some(name), _) => Goal::Test(name.to_owned()),
            (None, Some(_)) => Goal::Benches,
            (None, None) if value("workload=").is_some_and(beats_under) => Goal::Beats(beats),
            (None, None) => Goal::Online,
        }
    }
}

/// The judge of one run.
#[derive(Debug)]
pub struct Judge {
    goal: Goal,
    vcpus: u32,
    watch: Watch,
    beats: u32,
    figures: u64,
    reached: bool,
    failure: Option<Failure>,
    /// What the guest has told, for the report.
    pub told: Told,
}

/// Facts that the guest has told on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// From entry to all vCPUs online.
    pub online_ns: Option<u64>,
    /// Names from `test=list`.
    pub tests: Vec<String>,
    /// Names from `bench=list`.
    pub benches: Vec<String>,
    /// Why it shut down, if it did.
    pub shutdown: Option<String>,
    /// Self-checks passed.
    pub checks_passed: u64,
}

impl Judge {
    /// For a guest with so many vCPUs.
    pub fn new(goal: Goal, vcpus: u32) -> Judge {
        let mut watch = Watch::new(vcpus);
        watch.expect_shutdown();
        Judge { goal, vcpus, watch, beats: 0, figures: 0, reached: false, failure: None, told: Told::default() }
    }

    /// Takes one line; `Break` when there is nothing more to wait for.
    pub fn take(&mut self, line: &str) -> ControlFlow<()> {
        if self.failure.is_some() || self.reached {
            return ControlFlow::Break(());
        }
        let said = match self.watch.take(line) {
            Ok(None) => return ControlFlow::Continue(()),
            Ok(Some(said)) => said,
            Err(failure) => {
                self.failure = Some(failure);
                return ControlFlow::Break(());
            }
        };
        self.told.checks_passed = self.watch.checks_passed();
        match (&said.event, &self.goal) {
            (Event::Online { ns, .. }, goal) => {
                self.told.online_ns = Some(*ns);
                self.reached = *goal == Goal::Online;
            }
            (Event::Check { name, pass: true }, Goal::Test(wanted)) => self.reached = name == wanted,
            (Event::Test { name }, _) => self.told.tests.push(name.clone()),
            (Event::BenchName { name }, _) => self.told.benches.push(name.clone()),
            (Event::Bench { .. }, _) => self.figures += 1,
            (Event::BenchEnd { benches }, Goal::Benches) => self.reached = *benches == self.figures,
            (Event::Heartbeat { vcpus, beats_min, .. }, Goal::Beats(wanted)) => {
                self.beats += u32::from(*vcpus == self.vcpus && *beats_min > 0);
                self.reached = self.beats >= *wanted;
            }
            (Event::Shutdown { reason }, goal) => {
                self.told.shutdown = Some(reason.clone());
                self.reached = match goal {
                    Goal::List => !self.told.tests.is_empty() || !self.told.benches.is_empty(),
                    Goal::End => true,
                    _ => false,
                };
                if !self.reached {
                    self.failure = Some(Failure::Shutdown(reason.clone()));
                }
                return ControlFlow::Break(());
            }
            _ => {}
        }
        if self.reached { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// The verdict when no more lines come. `Ok(false)`: no failure, but the goal was not reached.
    ///
    /// # Errors
    /// The guest's failure.
    pub fn verdict(&self) -> Result<bool, Failure> {
        match (&self.failure, self.watch.dying()) {
            (Some(failure), _) => Err(failure.clone()),
            (None, Some(panic)) => Err(Failure::Panic(panic.clone())),
            (None, None) => Ok(self.reached),
        }
    }

    /// The newest lines, oldest first.
    pub fn last_words(&self) -> String {
        self.watch.last_words().collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(cmdline: &str, lines: &[&str]) -> (Result<bool, Failure>, usize, Told) {
        let mut judge = Judge::new(Goal::from_cmdline(cmdline, 2), 2);
        let taken = lines.iter().take_while(|line| judge.take(line).is_continue()).count();
        (judge.verdict(), taken, judge.told)
    }

    const ONLINE: &str = "stasis: online vcpus=2 ns=77";
    const BEAT: &str = "stasis: heartbeat seq=1 vcpus=2 beats_min=3 max_gap_ns=1 lost=0";
    const END: &str = "stasis: shutdown reason=poweroff";

    #[test]
    fn the_command_line_sets_the_goal() {
        for (cmdline, goal) in [
            ("workload=heartbeat", Goal::Beats(2)),
            ("workload=soak seed=3", Goal::Beats(2)),
            ("log=debug", Goal::Online),
            ("workload=idle", Goal::Online),
            ("test=timer evtchn=2l", Goal::Test("timer".into())),
            ("test=list", Goal::List),
            ("bench=null", Goal::Benches),
            ("bench=all evtchn=fifo", Goal::Benches),
            ("bench=list", Goal::List),
        ] {
            assert_eq!(Goal::from_cmdline(cmdline, 2), goal, "{cmdline}");
        }
    }

    #[test]
    fn a_run_ends_when_its_goal_is_reached() {
        let (verdict, taken, told) = run("workload=heartbeat", &["(XEN) hello", ONLINE, BEAT, BEAT, BEAT]);
        assert_eq!((verdict, taken, told.online_ns), (Ok(true), 3, Some(77)));
        assert_eq!(run("", &[ONLINE, BEAT]).0, Ok(true));
        let passed = "stasis: check name=timer result=pass";
        let (verdict, taken, _) = run("test=timer", &[ONLINE, "stasis: check name=other result=pass", passed, END]);
        assert_eq!((verdict, taken), (Ok(true), 2));
        let (verdict, _, told) = run("test=list", &["stasis: test name=a", "stasis: test name=b", END]);
        assert_eq!((verdict, told.tests), (Ok(true), vec!["a".to_owned(), "b".to_owned()]));
        let (verdict, _, told) = run("bench=list", &["stasis: bench-name name=a", END]);
        assert_eq!((verdict, told.benches), (Ok(true), vec!["a".to_owned()]));
        let figure = "stasis: bench name=null n=1";
        let (verdict, taken, _) = run("bench=null", &[ONLINE, figure, "stasis: bench-end benches=1", END]);
        assert_eq!((verdict, taken), (Ok(true), 2));
    }

    #[test]
    fn benches_that_do_not_end_or_lose_a_figure_are_not_good() {
        let figure = "stasis: bench name=null n=1";
        assert_eq!(run("bench=null", &[ONLINE, figure]).0, Ok(false));
        assert_eq!(run("bench=null", &[ONLINE, figure, "stasis: bench-end benches=2"]).0, Ok(false));
        let ended = [ONLINE, figure, "stasis: bench-end benches=2", END];
        assert_eq!(run("bench=null", &ended).0, Err(Failure::Shutdown("poweroff".into())));
    }

    #[test]
    fn silence_is_not_success() {
        assert_eq!(run("workload=heartbeat", &[ONLINE, BEAT]).0, Ok(false));
        assert_eq!(run("test=timer", &[ONLINE]).0, Ok(false));
        assert_eq!(run("", &[]).0, Ok(false));
    }

    #[test]
    fn failures_end_the_run() {
        let failed = "stasis: check name=timer result=fail why=late";
        assert_eq!(run("test=timer", &[ONLINE, failed, BEAT]).0, Err(Failure::Check(failed.into())));
        assert_eq!(run("workload=heartbeat", &[ONLINE, END]).0, Err(Failure::Shutdown("poweroff".into())));
        assert_eq!(run("test=list", &[END]).0, Err(Failure::Shutdown("poweroff".into())));
        let panic = "stasis: panic cpu=0 msg=x at=y";
        assert!(
            matches!(run("", &[panic, "stasis: backtrace cpu=0 pc=0x1"]).0, Err(Failure::Panic(p)) if p.pcs == [1])
        );
    }
}

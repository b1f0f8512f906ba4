//! Runs checks and test programs one after the other and counts what they say.
//!
//! Owns the run itself: a failing step is shown at once and the rest still run, since one round of
//! fixes should see all that is wrong. Cargo builds one thing at a time, since it locks the target directory; programs that
//! need one processor each for minutes can run side by side once they are built.

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::Session;
use crate::counts::{self, Counts, Layer};
use crate::host::Progress;
use crate::workspace::Workspace;
use crate::{cargo, ending, report};

/// Lines of a failing step's output that are shown at once.
const SHOWN: usize = 60;

/// How a step's output is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tally {
    /// The step is one test: it passes or fails as a whole.
    Step,
    /// The step runs tests and prints their results.
    Tests,
    /// The same, where each takes seconds: every result is shown as it comes.
    SlowTests,
}

/// The steps so far, by layer.
pub struct Steps<'s> {
    session: &'s Session,
    layers: Vec<Layer>,
}

impl<'s> Steps<'s> {
    /// None yet.
    pub fn new(session: &'s Session) -> Steps<'s> {
        Steps { session, layers: Vec::new() }
    }

    /// Where this run's logs go.
    pub fn logs(&self) -> &Path {
        &self.session.logs
    }

    /// The terminal, for what a layer has to say besides.
    pub fn terminal(&self) -> &crate::progress::Terminal {
        &self.session.terminal
    }

    /// What the workspace consists of; a failed step of `layer` where cargo cannot tell.
    pub fn workspace(&mut self, layer: &str) -> Option<Workspace> {
        self.session.terminal.stage("asking cargo for the crates (the first time it downloads them)");
        let workspace = Workspace::load();
        self.session.terminal.finished();
        self.verdict_of(layer, workspace)
    }

    /// The value; where there is none, a failed step of `layer`.
    pub fn verdict_of<T>(&mut self, layer: &str, outcome: Result<T>) -> Option<T> {
        outcome.map_err(|error| self.verdict(layer, Err(format!("{error:#}")))).ok()
    }

    /// Runs one command as a step of `layer`. One that cannot be started has failed.
    pub fn run(&mut self, layer: &str, name: &str, command: Command, tally: Tally) {
        let terminal = &self.session.terminal;
        terminal.stage(&format!("{layer}: {name}"));
        let started = Instant::now();
        let log = self.session.logs.join(format!("{layer}.log"));
        let ran = execute(self.session, &log, name, command, tally);
        // A step that a signal has ended has not failed, and the next must not begin.
        ending::give_way();
        if ran.success {
            terminal.finished();
        } else {
            terminal.abandon();
        }
        self.count(layer, &ran, tally);
        self.layer(layer).took += started.elapsed();
    }

    /// Runs commands as steps of `layer`, as many at once as there are processors, in the order given. Each has a log of its own.
    pub fn run_side_by_side(&mut self, layer: &str, commands: Vec<(String, Command)>, tally: Tally) {
        let session = self.session;
        let names: Vec<&str> = commands.iter().map(|(name, _)| name.as_str()).collect();
        session.terminal.stage(&format!("{layer}: {}", names.join(", ")));
        let started = Instant::now();
        let at_once = thread::available_parallelism().map_or(1, std::num::NonZero::get).min(commands.len());
        let queue = Mutex::new(commands.into_iter());
        let (done, all) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..at_once {
                let (done, queue) = (done.clone(), &queue);
                scope.spawn(move || {
                    while let Some((name, command)) = next(queue) {
                        let log = session.logs.join(format!("{layer}-{name}.log"));
                        // Its only reader is below, and outlives this thread.
                        let _ = done.send(execute(session, &log, &name, command, tally));
                    }
                });
            }
            drop(done);
            for ran in all {
                ending::give_way();
                session.terminal.note(&format!("{layer}: {}: {:.1} s", ran.name, ran.took.as_secs_f64()));
                self.count(layer, &ran, tally);
            }
        });
        session.terminal.finished();
        self.layer(layer).took += started.elapsed();
    }

    /// Adds what a step came to, and shows why it failed.
    fn count(&mut self, layer: &str, ran: &Step, tally: Tally) {
        if let Some(complaint) = &ran.complaint {
            self.session.terminal.say(complaint);
        }
        let row = self.layer(layer);
        row.counts += ran.counts;
        if tally != Tally::Step {
            counts::ignored(&ran.output).for_each(|why| row.skip(why));
        }
        if !ran.success {
            let names = counts::failed_names(&ran.output);
            let what = if names.is_empty() { ran.name.clone() } else { names.join(", ") };
            row.complaints.push(format!("{layer}: {what}; again with: {}", ran.typed));
        }
    }

    /// Counts a check that is not a program: `Err` holds what is wrong.
    pub fn verdict(&mut self, layer: &str, outcome: std::result::Result<(), String>) {
        let success = outcome.is_ok();
        if let Err(complaint) = &outcome {
            self.session.terminal.say(complaint);
        }
        let row = self.layer(layer);
        row.counts += Counts::of_step(success);
        row.complaints.extend(outcome.err().map(|complaint| format!("{layer}: {complaint}")));
    }

    /// Says aloud that a layer, or part of it, is not run; counts as one skipped test, so that it shows in every sum.
    pub fn skip(&mut self, layer: &str, why: &str) {
        self.session.terminal.say(&format!("SKIPPED: {layer}: {why}"));
        let row = self.layer(layer);
        row.counts.skipped += 1;
        row.skip(why);
    }

    fn layer(&mut self, name: &str) -> &mut Layer {
        let at = match self.layers.iter().position(|layer| layer.name == name) {
            Some(at) => at,
            None => {
                self.layers.push(Layer::new(name));
                self.layers.len() - 1
            }
        };
        &mut self.layers[at]
    }

    /// The table; an error where anything failed.
    ///
    /// # Errors
    /// Names what failed and how to run it again.
    pub fn summary(&self) -> Result<String> {
        let table = report::layers(&self.layers);
        let complaints: Vec<&str> = self.layers.iter().flat_map(|l| &l.complaints).map(String::as_str).collect();
        if counts::total(&self.layers).failed > 0 {
            bail!("{table}\n{}", complaints.join("\n"));
        }
        Ok(table)
    }

    /// The closing line.
    pub fn closing(&self) -> String {
        counts::total(&self.layers).to_string()
    }
}

/// What one command came to.
struct Step {
    name: String,
    /// The command as one would type it.
    typed: String,
    output: String,
    counts: Counts,
    took: Duration,
    success: bool,
    /// The end of the output of one that failed.
    complaint: Option<String>,
}

fn next(queue: &Mutex<impl Iterator<Item = (String, Command)>>) -> Option<(String, Command)> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).next()
}

fn execute(session: &Session, log: &Path, name: &str, command: Command, tally: Tally) -> Step {
    let terminal = &session.terminal;
    let typed = cargo::describe(&command);
    let started = Instant::now();
    let ran = cargo::run(command, log, &mut |line| {
        if tally == Tally::SlowTests && is_result(line) {
            terminal.say(line);
        } else {
            terminal.whisper(line);
        }
    });
    let (success, output) = match ran {
        Ok(ran) => (ran.success, ran.output),
        Err(error) => (false, format!("{error:#}")),
    };
    let counts = match tally {
        Tally::Step => Counts::of_step(success),
        Tally::Tests | Tally::SlowTests => Counts::of_run(&output, success),
    };
    let ran_none = success && counts.failed > 0;
    let success = success && !ran_none;
    let how = if ran_none { "ran no test at all" } else { "failed" };
    let end = cargo::tail(&output, SHOWN);
    let complaint = (!success).then(|| format!("`{typed}` {how}; the end of its output:\n{end}"));
    Step { name: name.to_owned(), typed, output, counts, took: started.elapsed(), success, complaint }
}

/// One test's line, or one that says what is skipped.
fn is_result(line: &str) -> bool {
    (line.starts_with("test ") && line.contains(" ... ")) || line.starts_with("SKIPPED")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_told_from_the_rest() {
        assert!(is_result("test migrate::twice ... ok") && is_result("SKIPPED: 3 tests"));
        assert!(!is_result("test result: ok. 3 passed; 0 failed") && !is_result("  | stasis: online"));
    }
}

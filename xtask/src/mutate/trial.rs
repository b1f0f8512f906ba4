//! Builds and runs one loom test in the copy, and says whether it went red.
//!
//! Owns those child processes, and their end: at the first failed test, and when the time is up. They lead process
//! groups, as all do (`cargo.rs`). The program runs without cargo, so that to build does not count as to run.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, pipe};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::copy::Copy;
use crate::{cargo, ending};

/// What loom says where a model is too large for the bounds that its test sets. It has found nothing then.
const TOO_MANY_BRANCHES: &str = "exceeded maximum number of branches";

/// A loom test.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Test {
    /// The crate.
    pub of: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for Test {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/tests/{}.rs", self.of, self.name)
    }
}

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All of it passed.
    Green,
    /// It failed: where, and what it said.
    Red(String),
    /// The model of this test was too large, and showed nothing.
    TooLarge(String),
    /// The time was up.
    Late,
}

/// Where trials are made.
#[derive(Debug)]
pub struct Bench<'c> {
    /// The sources.
    pub copy: &'c Copy,
    /// The target directory, kept warm.
    pub target: PathBuf,
    /// Where all output goes.
    pub log: PathBuf,
    /// How long a program may run.
    pub limit: Duration,
}

impl Bench<'_> {
    /// Builds `test`.
    ///
    /// # Errors
    /// When it does not compile, with the end of what the compiler says.
    pub fn build(&self, test: &Test) -> Result<PathBuf> {
        let mut command = cargo::cargo();
        command.current_dir(self.copy.tree());
        command.args(["test", "--package", &test.of, "--release", "--test", &test.name, "--no-run"]);
        command.arg("--message-format=json-render-diagnostics");
        // Release builds are not incremental by themselves: with it one edited file costs a second or two.
        command.env("RUSTFLAGS", "--cfg loom").env("CARGO_INCREMENTAL", "1").env("CARGO_TARGET_DIR", &self.target);
        let output = cargo::run_ok(command, &self.log, &mut |_| ())?;
        executable(&output, &test.name).with_context(|| format!("cargo names no program for {test}"))
    }

    /// Runs what [`Bench::build`] has built.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, test: &Test, program: &Path) -> Result<Ended> {
        let (reader, writer) = pipe().context("cannot make a pipe")?;
        let mut command = Command::new(program);
        // Uncaptured, so that why a test fails comes before that it has failed.
        command.arg("--nocapture").current_dir(self.copy.tree().join(&test.of)).stdin(Stdio::null());
        command.env("RUST_BACKTRACE", "0").stdout(writer.try_clone()?).stderr(writer).process_group(0);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let _with_us = ending::kill_group_of(&child, "TERM");
        drop(command);
        let (lines, output) = mpsc::channel();
        let reading = thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        let end = Instant::now() + self.limit;
        let mut said = Said::default();
        let ended = loop {
            match output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(ended) = said.line(&line) {
                        break Some(ended);
                    }
                }
                Err(RecvTimeoutError::Timeout) => break Some(Ended::Late),
                Err(RecvTimeoutError::Disconnected) => break None,
            }
        };
        if ended.is_some() {
            ending::kill(&format!("-{}", child.id()), "KILL");
        }
        let status = child.wait()?;
        drop(output);
        // It ends with the pipe, which ends with the group.
        let _ = reading.join();
        Ok(match ended {
            Some(ended) => ended,
            None if status.success() => Ended::Green,
            None => Ended::Red(format!("died ({status}){}", said.last())),
        })
    }
}

/// The program of `test` among cargo's messages.
fn executable(output: &str, test: &str) -> Result<PathBuf> {
    let messages = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut programs = messages.filter(|message| message["target"]["name"] == *test);
    match programs.find_map(|message| message["executable"].as_str().map(PathBuf::from)) {
        Some(program) => Ok(program),
        None => bail!("none among {} lines", output.lines().count()),
    }
}

/// What a test program has printed, as far as it matters.
#[derive(Default)]
struct Said {
    /// The test whose panic the next line is the message of.
    panicking: Option<String>,
    /// The first panic of each test. Those that follow come from taking the model down.
    panics: HashMap<String, String>,
    last: Option<String>,
}

impl Said {
    /// Takes one line; says how the program has ended if it is decided by now.
    fn line(&mut self, line: &str) -> Option<Ended> {
        if let Some(test) = self.panicking.take() {
            self.last = Some(line.to_owned());
            self.panics.entry(test).or_insert_with(|| line.to_owned());
        } else if let Some((_, thread)) = line.split_once("thread '")
            && let Some((test, rest)) = thread.split_once('\'')
            && rest.contains("panicked at")
        {
            self.panicking = Some(test.to_owned());
        }
        let test = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
        let message = self.panics.get(test).map_or("no message", String::as_str);
        Some(if message.contains(TOO_MANY_BRANCHES) {
            Ended::TooLarge(test.to_owned())
        } else {
            Ended::Red(format!("{test}: {message}"))
        })
    }

    fn last(&self) -> String {
        self.last.as_ref().map_or_else(String::new, |message| format!(": {message}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(output: &str) -> Option<Ended> {
        let mut said = Said::default();
        output.lines().find_map(|line| said.line(line))
    }

    #[test]
    fn a_failure_is_told_with_its_first_panic() {
        let output = "
running 2 tests
test a ... ok

thread 'b' (77) panicked at evtchn/tests/loom_fifo.rs:80:9:
port 0: an event was lost

thread 'b' (77) panicked at library/core/src/panicking.rs:1:1:
while the model is taken down
test b ... FAILED
test c ... FAILED";
        assert_eq!(ended(output), Some(Ended::Red("b: port 0: an event was lost".to_owned())));
    }

    #[test]
    fn a_model_that_is_too_large_has_shown_nothing() {
        let output = "
thread 'b' panicked at loom/src/rt/path.rs:1:1:
Model exceeded maximum number of branches. This is often caused by an algorithm
test b ... FAILED";
        assert_eq!(ended(output), Some(Ended::TooLarge("b".to_owned())));
    }

    #[test]
    fn a_test_that_should_panic_is_no_failure() {
        let output = "
thread 'b' panicked at x.rs:1:1:
boo
test b - should panic ... ok
test result: ok. 1 passed; 0 failed";
        assert_eq!(ended(output), None);
    }

    #[test]
    fn programs_are_found_among_cargos_messages() {
        let output = r#"   Compiling evtchn
{"reason":"compiler-artifact","target":{"name":"evtchn"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"loom_fifo"},"executable":"/t/loom_fifo-1"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(output, "loom_fifo").expect("there"), PathBuf::from("/t/loom_fifo-1"));
        assert!(executable(output, "loom_upcall").is_err());
    }
}

//! What the two test programs on Xen share: one image, one place, and the way to skip aloud.
//!
//! Both programs have no harness: their steps are named trials that run one after the other (one lab,
//! two processors). Turned down: one lab for each test, which would boot Xen forty times.

#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow};
use libtest_mimic::{Arguments, Failed, Trial};
use xtask::cargo;
use xtask::commands::Session;
use xtask::image::{self, Image};

/// Says which argument or variable left the lab out.
const SKIP_ARGUMENT: &str = "--skip-lab";
const SKIP_VARIABLE: &str = "STASIS_SKIP_LAB";
/// `cargo xtask test` puts its logs there.
const LOGS_VARIABLE: &str = "STASIS_TEST_LOGS";

/// The command line of a test program: libtest's own, and whether the lab is left out.
pub struct Invocation {
    /// libtest's arguments, set to one trial at a time.
    pub arguments: Arguments,
    /// Nothing may be booted.
    pub skip_lab: bool,
}

impl Invocation {
    /// Reads the command line and the environment.
    pub fn from_env() -> Invocation {
        Invocation::new(std::env::args(), std::env::var_os(SKIP_VARIABLE).is_some_and(|value| value != "0"))
    }

    fn new(words: impl Iterator<Item = String>, skip_by_variable: bool) -> Invocation {
        let (skip, rest): (Vec<_>, Vec<_>) = words.partition(|word| word == SKIP_ARGUMENT);
        let mut arguments = Arguments::from_iter(rest);
        arguments.test_threads = Some(1);
        Invocation { arguments, skip_lab: skip_by_variable || !skip.is_empty() }
    }

    /// Whether trials will run, so that it is worth to build and boot things for them.
    pub fn will_run(&self) -> bool {
        !self.skip_lab && !self.arguments.list
    }

    /// Fails, whatever the filter: a run in which nothing could be tried must not look like one with nothing to try.
    pub fn fail(mut self, name: &str, error: anyhow::Error) -> ! {
        let all = Arguments::from_iter([String::new()]);
        self.arguments = Arguments { format: self.arguments.format, logfile: self.arguments.logfile, ..all };
        self.conclude(vec![Trial::test(name, move || verdict(Err(error)))])
    }

    /// Runs the trials and ends the program; where the lab is left out, all are ignored, aloud.
    pub fn conclude(self, trials: Vec<Trial>) -> ! {
        let trials = if self.skip_lab {
            println!("SKIPPED: {} tests that need Xen ({SKIP_ARGUMENT} or {SKIP_VARIABLE})", trials.len());
            trials.into_iter().map(|trial| trial.with_ignored_flag(true)).collect()
        } else {
            trials
        };
        libtest_mimic::run(&self.arguments, trials).exit()
    }
}

/// A session for the test program, or the lab, of this name, logging beside where `cargo xtask test` says or else in `target/logs/`.
///
/// # Errors
/// When the directory cannot be made.
pub fn session(name: &str) -> Result<Session> {
    let logs = std::env::var_os(LOGS_VARIABLE).map_or_else(
        || cargo::results_dir().join("logs").join(format!("test-{name}")),
        |of_layer| Path::new(&of_layer).with_file_name(name),
    );
    Session::at(logs)
}

/// Builds the kernel.
///
/// # Errors
/// As [`image::build`].
pub fn build(session: &Session) -> Result<Image> {
    image::build(&session.terminal, &session.logs)
}

/// A file that every line of a guest is written to.
pub struct Transcript(File);

impl Transcript {
    /// Opens `NAME.log` in the session's logs.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn open(logs: &Path, name: &str) -> Result<Transcript> {
        let path = logs.join(format!("{}.log", name.replace("::", "-")));
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.map(Transcript).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Adds a line.
    pub fn line(&mut self, text: &str) {
        // The log is for reading after a failure; that it cannot be written is none of the guest's.
        let _ = writeln!(self.0, "{text}");
    }
}

/// Something that all trials of a program share, made by the first that needs it. A failure to make it is
/// told by the first trial; the others fail with a hint at it.
pub struct Shared<T> {
    /// `None`: nobody has needed it yet. `Err`: it could not be made.
    state: Mutex<Option<std::result::Result<T, ()>>>,
}

impl<T> Shared<T> {
    /// Nothing made yet.
    pub fn new() -> Arc<Shared<T>> {
        Arc::new(Shared { state: Mutex::new(None) })
    }

    /// Uses it, making it first if need be.
    ///
    /// # Errors
    /// `make`'s, on the first call; that it failed, on every later one; and `work`'s.
    pub fn with<R>(&self, make: impl FnOnce() -> Result<T>, work: impl FnOnce(&mut T) -> Result<R>) -> Result<R> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_none() {
            match make() {
                Ok(thing) => *state = Some(Ok(thing)),
                Err(error) => {
                    *state = Some(Err(()));
                    return Err(error);
                }
            }
        }
        match &mut *state {
            Some(Ok(thing)) => work(thing),
            _ => Err(anyhow!("what all tests here need could not be set up; the first failure tells why")),
        }
    }
}

/// An error as libtest-mimic shows it.
///
/// # Errors
/// The one it is given, in full.
pub fn verdict(outcome: Result<()>) -> std::result::Result<(), Failed> {
    outcome.map_err(|error| Failed::from(format!("{error:#}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invocation(words: &[&str], variable: bool) -> Invocation {
        Invocation::new(words.iter().map(|word| (*word).to_owned()), variable)
    }

    #[test]
    fn the_lab_is_left_out_by_argument_or_variable_only() {
        assert!(invocation(&["direct"], false).will_run());
        assert!(!invocation(&["direct", "--skip-lab"], false).will_run());
        assert!(!invocation(&["direct"], true).will_run());
        assert!(!invocation(&["direct", "--list"], false).will_run());
        let named = invocation(&["xl", "--skip-lab", "migrate"], false);
        assert_eq!((named.skip_lab, named.arguments.filter.as_deref()), (true, Some("migrate")));
        assert_eq!(named.arguments.test_threads, Some(1));
    }

    #[test]
    fn what_is_shared_is_made_once_and_fails_for_all() {
        let shared = Shared::new();
        let mut made = 0;
        for want in [1, 2] {
            let used = shared.with(
                || {
                    made += 1;
                    Ok(0)
                },
                |count| {
                    *count += 1;
                    Ok(*count)
                },
            );
            assert_eq!(used.ok(), Some(want));
        }
        assert_eq!(made, 1);
        let shared = Shared::<u32>::new();
        for want in ["no lab", "what all tests here need could not be set up; the first failure tells why"] {
            let error = shared.with(|| Err(anyhow!("no lab")), |_| Ok(())).expect_err("must fail");
            assert_eq!(error.to_string(), want);
        }
    }
}

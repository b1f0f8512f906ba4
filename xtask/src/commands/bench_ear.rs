//! Listens to a guest that is measured: whether it dies over it, and what it said last.
//!
//! Owns what does not depend on what is measured. Stasis is judged line by line; Linux speaks another language, and only its newest
//! lines are kept, for the report of a failure.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use anyhow::{Error, Result, anyhow};

use crate::bench::Side;
use crate::drive::guest::explained;
use crate::drive::watch::{Failure, Watch};

/// The rest of a dying guest's words.
const DYING: Duration = Duration::from_secs(5);

/// The newest lines of Linux that are kept.
const KEPT: usize = 30;

/// See the head of this file.
pub(super) struct Ear {
    side: Side,
    watch: Watch,
    /// Stasis on this machine, for backtraces.
    image: PathBuf,
    last_words: VecDeque<String>,
}

impl Ear {
    /// For a guest that was given `vcpus`.
    pub(super) fn new(side: Side, vcpus: u32, image: PathBuf) -> Ear {
        Ear { side, watch: Watch::new(vcpus), image, last_words: VecDeque::new() }
    }

    /// From now on its shutdown is what we asked for.
    pub(super) fn expect_shutdown(mut self) -> Ear {
        self.watch.expect_shutdown();
        self
    }

    /// Takes one line.
    ///
    /// # Errors
    /// What the guest did that no run survives.
    pub(super) fn take(&mut self, line: &str) -> Result<()> {
        match self.side {
            Side::Stasis => self.watch.take(line).map(drop).map_err(|failure| self.explained(failure)),
            Side::Linux => {
                if self.last_words.len() == KEPT {
                    self.last_words.pop_front();
                }
                self.last_words.push_back(line.to_owned());
                Ok(())
            }
        }
    }

    /// How long to wait for the next line where `left` is left: nobody waits long for the rest of a dying guest's words.
    pub(super) fn patience(&self, left: Duration) -> Duration {
        if self.is_dying() { left.min(DYING) } else { left }
    }

    /// Whether its panic is still being heard out.
    pub(super) fn is_dying(&self) -> bool {
        self.watch.dying().is_some()
    }

    /// No line came: its panic if it is dying, else that it did not do `what` within `limit`.
    pub(super) fn silence(&self, why: RecvTimeoutError, what: &str, limit: Duration) -> Error {
        if let Some(panic) = self.watch.dying() {
            return self.explained(Failure::Panic(panic.clone()));
        }
        let why = match why {
            RecvTimeoutError::Timeout => format!("{what} within {} s, in vain", limit.as_secs()),
            RecvTimeoutError::Disconnected => "the place where the guest ran has ended".to_owned(),
        };
        anyhow!("{why}; its last words:\n{}", self.words())
    }

    /// The newest lines.
    pub(super) fn words(&self) -> String {
        let of: Vec<&str> = match self.side {
            Side::Stasis => self.watch.last_words().collect(),
            Side::Linux => self.last_words.iter().map(String::as_str).collect(),
        };
        of.join("\n")
    }

    fn explained(&self, failure: Failure) -> Error {
        explained(failure, Some(&self.image), &format!("last words:\n{}", self.words()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(7);

    #[test]
    fn a_silent_linux_is_told_with_its_newest_lines() {
        let mut ear = Ear::new(Side::Linux, 2, PathBuf::new());
        for n in 0..40 {
            ear.take(&format!("line {n}")).expect("not ours to judge");
        }
        assert_eq!((ear.words().lines().count(), ear.words().lines().next()), (KEPT, Some("line 10")));
        let error = ear.silence(RecvTimeoutError::Timeout, "waited for its end", LIMIT).to_string();
        assert!(error.starts_with("waited for its end within 7 s, in vain") && error.ends_with("line 39"), "{error}");
        let error = ear.silence(RecvTimeoutError::Disconnected, "waited", LIMIT).to_string();
        assert!(error.starts_with("the place where the guest ran has ended"), "{error}");
    }

    #[test]
    fn a_stasis_that_panics_says_where() {
        let mut ear = Ear::new(Side::Stasis, 2, PathBuf::new());
        assert_eq!(ear.patience(LIMIT), LIMIT);
        ear.take("stasis: panic cpu=1 msg=oh at=a.rs:1").expect("its backtrace is to be heard");
        assert!(ear.is_dying() && ear.patience(LIMIT) < LIMIT);
        let error = ear.silence(RecvTimeoutError::Timeout, "waited", LIMIT);
        assert!(matches!(error.downcast_ref(), Some(Failure::Panic(panic)) if panic.at == "a.rs:1"), "{error:#}");
    }

    #[test]
    fn a_shutdown_is_a_failure_unless_expected() {
        let line = "stasis: shutdown reason=poweroff";
        let ear = || Ear::new(Side::Stasis, 2, PathBuf::new());
        assert!(ear().take(line).is_err());
        assert!(ear().expect_shutdown().take(line).is_ok());
    }
}

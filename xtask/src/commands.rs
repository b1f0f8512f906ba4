//! What the user can ask for: one file per command, and what they share.
//!
//! Owns the start (terminal, log directory) and the end (where the logs are) of every command. A
//! command is a function from its options to a result; exit codes are `main`'s.

pub mod check;
pub mod direct;
pub mod image;
pub mod models;
pub mod run;
pub mod setup;
pub mod steps;
pub mod suspend;
pub mod test;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::cargo;
use crate::host::{Host, Progress, ThisHost};
use crate::lab::{self, Lab, LabConfig};
use crate::options::{LogOptions, On, PlaceOptions};
use crate::progress::Terminal;

/// Lives as long as a command: where it shows what it does, and where its logs go.
pub struct Session {
    /// The user's terminal.
    pub terminal: Terminal,
    /// A directory of its own, empty at the start.
    pub logs: PathBuf,
}

impl Session {
    /// Starts a command of this name.
    ///
    /// # Errors
    /// When the log directory cannot be made.
    pub fn start(command: &str, options: LogOptions) -> Result<Session> {
        let below = cargo::results_dir().join("logs");
        let logs = if options.keep_logs {
            let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            below.join(format!("{command}-{}", since_1970.as_secs()))
        } else {
            below.join(command)
        };
        Session::at(logs)
    }

    /// Starts with this log directory, emptied.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn at(logs: PathBuf) -> Result<Session> {
        empty_dir(&logs)?;
        Ok(Session { terminal: Terminal::new(), logs })
    }

    /// Ends the command: what happened (or what went wrong), then where the logs are.
    ///
    /// # Errors
    /// The error it was given, so that `main` prints it last.
    pub fn end(self, outcome: Result<String>) -> Result<()> {
        let logs = format!("logs: {}", relative(&self.logs));
        match outcome {
            Ok(text) => {
                self.terminal.finished();
                self.terminal.say(&format!("{text}\n{logs}"));
                Ok(())
            }
            Err(error) => {
                self.terminal.abandon();
                Err(error.context(format!("failed; {logs}")))
            }
        }
    }
}

/// A path below the workspace as one would type it there.
pub fn relative(path: &Path) -> String {
    path.strip_prefix(cargo::root()).unwrap_or(path).display().to_string()
}

fn empty_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot clear {}", dir.display()));
        }
        _ => {}
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))
}

/// What a guest asks of the place where it runs.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Its vCPUs.
    pub vcpus: u32,
    /// Its memory.
    pub memory_mib: u32,
    /// How many of it, or of its images, exist at once.
    pub copies: u32,
    /// Live migration.
    pub log_dirty: bool,
}

/// Boots the lab, or joins this machine's Xen.
///
/// # Errors
/// With what is missing and what to do about it.
pub fn open(place: PlaceOptions, needs: Needs, session: &Session) -> Result<Box<dyn Host + Send>> {
    match place.on {
        On::Host => Ok(Box::new(ThisHost::new()?)),
        On::Lab => {
            let config = LabConfig {
                host_cpus: place.host_cpus,
                memory: lab::memory_for(needs.vcpus, needs.memory_mib, needs.copies),
                shadow_xen: needs.log_dirty && !place.stock_xen,
                xen_args: Vec::new(),
                logs: session.logs.clone(),
            };
            Ok(Box::new(Lab::boot(&config, &session.terminal)?))
        }
    }
}

/// The domain's name: fixed in the lab, where we are alone, and our own on a machine with others.
pub fn domain_name(place: PlaceOptions) -> String {
    match place.on {
        On::Lab => "stasis".to_owned(),
        On::Host => format!("stasis-{}", std::process::id()),
    }
}

//! What the user can ask for: one file per command, and what they share.
//!
//! Owns the start (terminal, log directory) and the end (where the logs are) of every command. A
//! command is a function from its options to a result; exit codes are `main`'s.

pub mod bench;
mod bench_downtime;
mod bench_downtime_guests;
mod bench_ear;
mod bench_guests;
pub mod check;
pub mod direct;
pub mod dirty;
pub mod image;
pub mod models;
pub mod mutate;
pub mod remus;
pub mod run;
pub mod setup;
pub mod soak;
pub mod steps;
pub mod suspend;
pub mod test;
pub mod timeline;

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};

use crate::cargo;
use crate::host::{Host, Progress, ThisHost};
use crate::image::Image;
use crate::lab::{self, Lab, LabConfig};
use crate::options::{GuestOptions, LogOptions, On, PlaceOptions};
use crate::progress::Terminal;
use crate::xlcfg::{self, GuestConfig};

/// Lives as long as a command: where it shows what it does, and where its logs go.
pub struct Session {
    /// The user's terminal.
    pub terminal: Terminal,
    /// A directory of its own, empty at the start.
    pub logs: PathBuf,
    /// Held for its lock only: the directory is ours.
    _lock: File,
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

    /// Starts with this log directory, emptied; with `LOGS-2` and so on while another run has it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn at(logs: PathBuf) -> Result<Session> {
        let (logs, lock) = claim(&logs)?;
        empty_dir(&logs)?;
        Ok(Session { terminal: Terminal::new(), logs, _lock: lock })
    }

    /// Ends the command: what happened (or what went wrong), then where the logs are.
    ///
    /// # Errors
    /// The error it was given, with the logs after it, so that `main` prints it last.
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
                Err(anyhow!("{error:#}\n{logs}"))
            }
        }
    }
}

/// A path below the workspace as one would type it there.
pub fn relative(path: &Path) -> String {
    path.strip_prefix(cargo::root()).unwrap_or(path).display().to_string()
}

/// The first of `dir`, `dir-2`, `dir-3` … that no other run uses, and the lock that says so. It lies beside the directory,
/// which is to be emptied.
fn claim(dir: &Path) -> Result<(PathBuf, File)> {
    const MOST: u32 = 99;
    let below = dir.parent().context("a log directory lies below another")?;
    let name = dir.file_name().context("a log directory has a name")?.to_string_lossy();
    fs::create_dir_all(below).with_context(|| format!("cannot make {}", below.display()))?;
    for number in 1..=MOST {
        let name = if number == 1 { name.to_string() } else { format!("{name}-{number}") };
        let path = below.join(format!(".{name}.lock"));
        let file = File::options().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => return Ok((below.join(name), file)),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("locking {}", path.display()));
            }
        }
    }
    bail!("{MOST} runs log to {} already", dir.display())
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
        On::Host if place.shapes_the_lab() => bail!(
            "--host-cpus, --stock-xen, --sched and --deterministic choose what the lab is like; on this machine Xen is as it is"
        ),
        On::Host => Ok(Box::new(ThisHost::new()?)),
        On::Lab => {
            let config = LabConfig {
                host_cpus: place.host_cpus.unwrap_or(lab::USUAL_CPUS),
                memory: lab::memory_for(needs.vcpus, needs.memory_mib, needs.copies),
                shadow_xen: needs.log_dirty && !place.stock_xen,
                xen_args: place.sched.iter().map(|sched| format!("sched={}", sched.name())).collect(),
                deterministic: place.deterministic,
                logs: session.logs.clone(),
            };
            Ok(Box::new(Lab::boot(&config, &session.terminal)?))
        }
    }
}

/// Puts a file of this machine where the guests run, as `name`. Its path there.
///
/// # Errors
/// When it cannot be read or put.
pub fn put_file(host: &mut dyn Host, name: &str, from: &Path) -> Result<String> {
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    host.put(name, &bytes)
}

/// The one guest of a command, with the kernel put where it runs. `workload`: what it does where the user's words name nothing.
///
/// # Errors
/// When the kernel cannot be put there.
fn the_guest(
    host: &mut dyn Host,
    image: &Image,
    place: PlaceOptions,
    guest: &GuestOptions,
    (workload, extra): (&str, &str),
) -> Result<GuestConfig> {
    Ok(GuestConfig {
        name: domain_name(place),
        kernel: put_file(host, "stasis.elf", &image.path)?,
        vcpus: guest.vcpus,
        max_vcpus: guest.most_vcpus()?,
        memory_mib: guest.memory,
        cmdline: xlcfg::cmdline(workload, extra),
    })
}

/// The domain's name: fixed in the lab, where we are alone, and our own on a machine with others.
pub fn domain_name(place: PlaceOptions) -> String {
    match place.on {
        On::Lab => "stasis".to_owned(),
        On::Host => format!("stasis-{}", std::process::id()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runs_do_not_share_their_logs() {
        if cfg!(miri) {
            return;
        }
        let below = std::env::temp_dir().join(format!("stasis-logs-{}", std::process::id()));
        let first = Session::at(below.join("migrate")).expect("ours");
        fs::write(first.logs.join("console.log"), "x").expect("ours");
        let second = Session::at(below.join("migrate")).expect("ours");
        assert_eq!(second.logs, below.join("migrate-2"));
        assert!(first.logs.join("console.log").exists());
        drop(first);
        let third = Session::at(below.join("migrate")).expect("ours");
        assert_eq!(third.logs, below.join("migrate"));
        assert!(!third.logs.join("console.log").exists(), "what an earlier run left is cleared");
        fs::remove_dir_all(below).expect("ours");
    }
}

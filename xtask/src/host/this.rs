//! This machine as the place where guests run: its own Xen, its own `xl`.
//!
//! Owns the checks that this really is a working dom0, a private directory for files, and the thread that
//! follows consoles. Scripts run as processes here, in a process group of their own, and are killed with their
//! children at their limit and when a signal ends us. Consoles are read from xenconsoled's logs where it writes them (`--log=guest`);
//! elsewhere `xl console` is attached and attached again, which loses nothing either: xenconsoled keeps a
//! domain's output until somebody has read it.
//!
//! Turned down: switching xenconsoled's logging on by ourselves, which means restarting a daemon under
//! domains that are not ours.

use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{ConsoleLine, Exit, Host, info_value};
use crate::ending::{self, AtEnd, Temporary};
use crate::lab::{Follower, Splitter};

/// Where Debian's xenconsoled writes guests' logs, if it writes any.
const LOGS: &str = "/var/log/xen/console";

/// How often a running script and the console logs are looked at.
const POLL: Duration = Duration::from_millis(25);

/// How long the last scripts may take when a signal ends us.
const AT_END: Duration = Duration::from_secs(60);

/// This machine, found to be a dom0.
pub struct ThisHost {
    description: String,
    inbox: Temporary,
    scripts: u32,
    lines: Receiver<ConsoleLine>,
    lines_to: Sender<ConsoleLine>,
    consoles: Consoles,
}

/// How consoles are read.
enum Consoles {
    /// From xenconsoled's logs, by one thread that lives as long as the other half of this.
    Logs(Arc<Mutex<Follower>>),
    /// By `xl console`, a thread per name; each ends when the other half of this is gone.
    Attached { alive: Arc<()>, names: Vec<String> },
}

impl ThisHost {
    /// Looks whether `xl` works here.
    /// # Errors
    /// Where it does not, with the reason: no Xen, no control domain, no `xl`, or `xl`'s own words.
    pub fn new() -> Result<Self> {
        let capabilities = std::fs::read_to_string("/proc/xen/capabilities").ok();
        let hypervisor = std::fs::read_to_string("/sys/hypervisor/type").ok();
        refuse(capabilities.as_deref(), hypervisor.as_deref())?;
        let info = Command::new("xl").arg("info").output();
        let info = info.context("this is a control domain, but xl cannot be started; install xen-utils")?;
        if !info.status.success() {
            bail!("xl does not work here: {}", String::from_utf8_lossy(&info.stderr).trim());
        }
        let inbox = std::env::temp_dir().join(format!("stasis-{}", std::process::id()));
        // Ours alone: kernels and configurations that root's xl is about to use must not be replaced.
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&inbox)
            .with_context(|| format!("creating {}", inbox.display()))?;
        let inbox = Temporary::new(inbox);
        let (lines_to, lines) = channel();
        let consoles = if xenconsoled_logs_guests() {
            Consoles::Logs(follow_logs(Path::new(LOGS), lines_to.clone()))
        } else {
            Consoles::Attached { alive: Arc::new(()), names: Vec::new() }
        };
        let description = described(&String::from_utf8_lossy(&info.stdout));
        Ok(Self { description, inbox, scripts: 0, lines, lines_to, consoles })
    }
}

impl Host for ThisHost {
    fn describe(&self) -> String {
        self.description.clone()
    }

    fn sh(&mut self, script: &str, limit: Duration) -> Result<Exit> {
        self.scripts += 1;
        let path = self.inbox.path().join(format!(".output-{}", self.scripts));
        let exit = run(script, limit, &path, |script| Some(ending::kill_group_of(script, "KILL")));
        // What a signal has ended is no result, and clearing up is the handler's.
        ending::give_way();
        // It may never have been made.
        let _ = std::fs::remove_file(path);
        exit
    }

    fn at_end(&self, script: &str) -> Option<AtEnd> {
        let (script, path) = (script.to_owned(), self.inbox.path().join(".output-at-end"));
        Some(ending::at_end(move || {
            // The user sees what takes the time, and what to do where it fails.
            let title = first_line(&script).to_owned();
            eprintln!("{title} ...");
            match run(&script, AT_END, &path, |_| None) {
                Ok(exit) if exit.ok() => {}
                Ok(exit) => eprintln!("{title}: failed; look at `xl list`\n{}", exit.output.trim_end()),
                Err(error) => eprintln!("{title}: failed; look at `xl list`\n{error:#}"),
            }
        }))
    }

    fn put(&mut self, name: &str, bytes: &[u8]) -> Result<String> {
        if name.is_empty() || name.contains('/') {
            bail!("{name:?} is no plain file name");
        }
        let path = self.inbox.path().join(name);
        std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
        Ok(path.display().to_string())
    }

    fn follow(&mut self, domain: &str) -> Result<()> {
        match &mut self.consoles {
            Consoles::Logs(follower) => follower.lock().unwrap_or_else(PoisonError::into_inner).follow(domain),
            Consoles::Attached { alive, names } => {
                if !names.iter().any(|name| name == domain) {
                    names.push(domain.to_owned());
                    let (alive, domain, lines) = (Arc::downgrade(alive), domain.to_owned(), self.lines_to.clone());
                    std::thread::spawn(move || {
                        while alive.strong_count() > 0 {
                            attached(&domain, &lines);
                            std::thread::sleep(POLL);
                        }
                    });
                }
            }
        }
        Ok(())
    }

    fn lines(&mut self) -> &Receiver<ConsoleLine> {
        &self.lines
    }

    fn interactive(&mut self, domain: &str) -> Result<()> {
        let _terminal = crate::lab::Terminal::kept();
        let mut console = Command::new("xl").args(["console", domain]).spawn().context("starting xl console")?;
        let _with_us = ending::kill_alone(&console);
        let status = console.wait().context("waiting for xl console")?;
        if !status.success() {
            bail!("xl console {domain} ended with {status}");
        }
        Ok(())
    }
}

/// Says why this is no place for guests, judging by `/proc/xen/capabilities` and `/sys/hypervisor/type`, if there are
/// such files.
fn refuse(capabilities: Option<&str>, hypervisor: Option<&str>) -> Result<()> {
    match capabilities {
        None if hypervisor.is_some_and(|name| name.trim() == "xen") => {
            bail!("this machine runs under Xen, but /proc/xen is empty; run: mount -t xenfs xenfs /proc/xen")
        }
        None => {
            bail!("this machine does not run under Xen (no /proc/xen/capabilities); leave out --on host to use the lab")
        }
        Some(words) if !words.split_whitespace().any(|word| word.trim_matches(',') == "control_d") => {
            bail!("this is a Xen guest, not the control domain, so there is no xl to start guests with; use the lab")
        }
        Some(_) => Ok(()),
    }
}

fn described(info: &str) -> String {
    let value = |key: &str| info_value(info, key);
    format!(
        "this host: Xen {} ({}), {} CPUs; dom0 Linux {}",
        value("xen_version"),
        value("xen_scheduler"),
        value("nr_cpus"),
        value("release")
    )
}

/// Whether a xenconsoled runs that was told to log guests.
fn xenconsoled_logs_guests() -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else { return false };
    let lines = processes.filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).into_owned()).any(|line| logs_guests(&line))
}

/// The same for one command line, whose words end with 0.
fn logs_guests(line: &str) -> bool {
    let mut words = line.split('\0');
    let program = words.next().unwrap_or_default();
    program.rsplit('/').next() == Some("xenconsoled") && words.any(|word| word == "--log=guest" || word == "--log=all")
}

fn follow_logs(directory: &Path, lines: Sender<ConsoleLine>) -> Arc<Mutex<Follower>> {
    let follower = Arc::new(Mutex::new(Follower::new(directory)));
    let watched = Arc::downgrade(&follower);
    std::thread::spawn(move || {
        let mut splitter = Splitter::default();
        while let Some(follower) = watched.upgrade() {
            let polled = follower.lock().unwrap_or_else(PoisonError::into_inner).poll(&mut |domain, file, bytes| {
                for line in splitter.split(domain, file.as_bytes(), bytes) {
                    lines.send(line).map_err(|_| std::io::ErrorKind::BrokenPipe)?;
                }
                Ok(())
            });
            drop(follower);
            if polled.is_err() {
                return;
            }
            std::thread::sleep(POLL);
        }
    });
    follower
}

/// One attachment to the console of the domain that has this name now, until it ends.
fn attached(domain: &str, lines: &Sender<ConsoleLine>) {
    let console = Command::new("xl")
        .args(["console", domain])
        // Kept open: at the end of its input xl console would leave.
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut console) = console else { return };
    let mut splitter = Splitter::default();
    if let Some(mut output) = console.stdout.take() {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            for line in splitter.split(domain, b"", &buffer[..count]) {
                if lines.send(line).is_err() {
                    break;
                }
            }
        }
    }
    // It has closed its output, so it is ending or has ended.
    let _ = console.wait();
}

/// Runs a script with its output in the file `path`: a daemon that it leaves behind may hold a pipe for ever.
/// `started` may leave word what is to become of it when a signal ends us.
fn run(script: &str, limit: Duration, path: &Path, started: fn(&Child) -> Option<AtEnd>) -> Result<Exit> {
    let file = std::fs::File::options().create(true).append(true).open(path);
    let file = file.with_context(|| format!("creating {}", path.display()))?;
    let mut child = Command::new("sh")
        .arg("-c")
        .arg(script)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("a second handle for the output")?)
        .stderr(file)
        .spawn()
        .context("starting a shell")?;
    let _with_us = started(&child);
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().context("waiting for a script")? {
            break status;
        }
        if Instant::now() >= end {
            kill(&mut child);
            let output = std::fs::read(path).unwrap_or_default();
            bail!(
                "still running after {} s, so killed: {}\n{}",
                limit.as_secs(),
                first_line(script),
                String::from_utf8_lossy(&output).trim_end()
            );
        }
        std::thread::sleep(POLL);
    };
    let output = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(Exit { code, output: String::from_utf8_lossy(&output).into_owned() })
}

/// What a script is called in messages; a comment's text where it starts with one.
fn first_line(script: &str) -> &str {
    let line = script.lines().find(|line| !line.trim().is_empty()).unwrap_or("").trim();
    line.trim_start_matches("# ")
}

/// Kills a script with the children that it has in its process group.
fn kill(child: &mut Child) {
    ending::kill(&format!("-{}", child.id()), "KILL");
    // Should that have failed, at least the wait below must end.
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_xen_and_a_guest_are_refused_with_the_reason() {
        let reason = |capabilities, type_| format!("{:#}", refuse(capabilities, type_).expect_err("no dom0"));
        assert!(reason(None, None).contains("does not run under Xen"));
        assert!(reason(None, Some("kvm\n")).contains("does not run under Xen"));
        assert!(reason(None, Some("xen\n")).contains("mount -t xenfs xenfs /proc/xen"));
        assert!(reason(Some("\n"), Some("xen\n")).contains("not the control domain"));
        assert!(refuse(Some("control_d\n"), Some("xen\n")).is_ok());
    }

    #[test]
    fn only_a_xenconsoled_that_logs_guests_counts() {
        assert!(logs_guests("/usr/lib/xen-4.17/bin/xenconsoled\0--log=guest\0--pid-file=x\0"));
        assert!(logs_guests("xenconsoled\0--log=all\0"));
        assert!(!logs_guests("xenconsoled\0--pid-file=x\0"));
        assert!(!logs_guests("xenconsoled\0--log=hv\0"));
        assert!(!logs_guests("vi\0--log=guest\0"));
        assert!(!logs_guests(""));
    }

    #[test]
    #[cfg(not(miri))]
    fn scripts_end_with_their_output_or_at_their_limit() {
        let path = std::env::temp_dir().join(format!("stasis-this-{}", std::process::id()));
        let exit = run("echo out; echo err >&2; sleep 600 & exit 4", Duration::from_secs(60), &path, |_| None)
            .expect("it runs");
        assert_eq!(exit, Exit { code: 4, output: "out\nerr\n".into() });
        std::fs::remove_file(&path).expect("our own file");
        let ended = run("echo begun; sleep 600", Duration::from_millis(200), &path, |_| None);
        let error = ended.expect_err("too long").to_string();
        assert!(error.contains("echo begun; sleep 600") && error.ends_with("\nbegun"), "{error}");
        std::fs::remove_file(&path).expect("our own file");
    }
}

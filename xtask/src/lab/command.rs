//! Runs the machine's own programs for the lab: apt, dpkg, make, rustc.
//!
//! Owns how their output is kept and how their failure is told: nothing they print reaches the terminal,
//! where it would tear the progress lines apart; the end of it becomes part of the error.

use std::fmt::Write as _;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

use crate::ending;

/// How many of a failed program's last lines are shown.
const SHOWN: usize = 15;

/// Runs `command`, which is told `what` in errors, and returns what it wrote to stdout.
/// # Errors
/// When it cannot be started or does not end with 0, with the end of what it wrote.
pub(super) fn output(what: &str, command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().with_context(|| format!("{what}: cannot start {command:?}"))?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    if status.success() {
        return Ok(stdout);
    }
    let all = stdout + &String::from_utf8_lossy(&stderr);
    bail!("{what} failed ({status}): {command:?}\n{}", tail(&all, SHOWN));
}

/// Runs `command` for its effect; its children end with us. All that it writes goes to the file `log`.
/// # Errors
/// When it cannot be started or does not end with 0, with the end of the log.
pub(super) fn logged(what: &str, command: &mut Command, log: &Path) -> Result<()> {
    let file = std::fs::File::create(log).with_context(|| format!("creating {}", log.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("a second handle for the log")?)
        .stderr(file)
        .process_group(0)
        .spawn()
        .with_context(|| format!("{what}: cannot start {command:?}"))?;
    let with_us = ending::kill_group_of(&child, "TERM");
    let status = child.wait().with_context(|| format!("{what}: waiting for {command:?}"))?;
    drop(with_us);
    if status.success() {
        return Ok(());
    }
    let text = std::fs::read(log).unwrap_or_default();
    bail!("{what} failed ({status}): {command:?}\n{}", tail(&String::from_utf8_lossy(&text), SHOWN));
}

/// The last `count` lines of `text`, each indented.
pub(super) fn tail(text: &str, count: usize) -> String {
    crate::cargo::tail(text, count).lines().fold(String::new(), |mut shown, line| {
        // Writing to a String cannot fail.
        let _ = writeln!(shown, "    {}", line.trim_end());
        shown
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_is_the_end() {
        assert_eq!(tail("a\nb\r\nc", 2), "    b\n    c\n");
        assert_eq!(tail("a", 2), "    a\n");
        assert_eq!(tail("", 2), "");
    }

    #[test]
    #[cfg(not(miri))]
    fn failure_shows_the_end_of_both_streams() {
        let error = output("asking", Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]))
            .expect_err("exit 3")
            .to_string();
        assert!(error.starts_with("asking failed (exit status: 3)"), "{error}");
        assert!(error.contains("    out\n    err\n"), "{error}");
        let missing = output("asking", &mut Command::new("no-such-program-here")).expect_err("not there");
        assert!(format!("{missing:#}").contains("no-such-program-here"));
    }
}

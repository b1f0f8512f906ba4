//! Runs cargo, rustup and other programs for the commands, and knows where the workspace is.
//!
//! Owns child processes that are plain builds and tests: their output goes to a log file as it comes,
//! each line to the caller (for its progress display), the tail into the error when they fail. Each child leads a
//! process group, which is ended when a signal ends us: cargo alone would leave the test program that it runs. Turned
//! down: a library that drives cargo; the command line is its stable interface.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write, pipe};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::ending;

/// The root of the workspace that this xtask was built from.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// `target/` of the workspace, whatever `CARGO_TARGET_DIR` says: where results for the user go.
pub fn results_dir() -> PathBuf {
    root().join("target")
}

/// A command for `cargo` at the workspace root, by the toolchain that the workspace pins.
pub fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// `cargo` of another toolchain, by rustup.
pub fn cargo_of(toolchain: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", toolchain, "cargo"]).current_dir(root()).stdin(Stdio::null());
    // rustup's proxies export the pinned toolchain, cargo its own path: neither is meant here.
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").env_remove("RUSTC");
    command
}

/// What a program printed and whether it was content.
#[derive(Debug)]
pub struct Ran {
    /// Did it exit with 0?
    pub success: bool,
    /// stdout and stderr in the order written.
    pub output: String,
}

/// Runs to the end; all output goes to `log` (created with its directory, appended to) and line by
/// line to `on_line`, as it comes.
///
/// # Errors
/// When the program cannot be started or the log not be written. A failing program is no error here.
pub fn run(mut command: Command, log: &Path, on_line: &mut dyn FnMut(&str)) -> Result<Ran> {
    let line = describe(&command);
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let mut log_file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    writeln!(log_file, "$ {line}")?;
    let (reader, writer) = pipe().context("cannot make a pipe")?;
    command.stdout(writer.try_clone()?).stderr(writer).process_group(0);
    let mut child = command.spawn().with_context(|| format!("cannot start `{line}`"))?;
    let _with_us = ending::kill_group_of(&child, "TERM");
    // The command holds the pipe's write ends: with it gone, the pipe ends when the child does.
    drop(command);
    let mut output = String::new();
    let mut reader = BufReader::new(reader);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes)? == 0 {
            break;
        }
        log_file.write_all(&bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        on_line(text.trim_end());
        output.push_str(&text);
    }
    let status = child.wait()?;
    Ok(Ran { success: status.success(), output })
}

/// Like [`run`], where a failing program is an error that shows the end of its output.
///
/// # Errors
/// As [`run`], and when the program fails.
pub fn run_ok(command: Command, log: &Path, on_line: &mut dyn FnMut(&str)) -> Result<String> {
    let line = describe(&command);
    let ran = run(command, log, on_line)?;
    if !ran.success {
        // Cargo's messages for programs are for us, not for the user.
        let said: Vec<&str> = ran.output.lines().filter(|line| !line.starts_with('{')).collect();
        bail!("`{line}` failed:\n{}\n(all of it: {})", tail(&said.join("\n"), 40), log.display());
    }
    Ok(ran.output)
}

/// Runs something whose stdout we want to read.
///
/// # Errors
/// When it cannot be started or fails, with the end of its stderr.
pub fn capture(mut command: Command) -> Result<String> {
    let line = describe(&command);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let child = command.spawn().with_context(|| format!("cannot start `{line}`"))?;
    let _with_us = ending::kill_group_of(&child, "TERM");
    let output = child.wait_with_output().with_context(|| format!("cannot read from `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed:\n{}", tail(&String::from_utf8_lossy(&output.stderr), 40));
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{line}` printed no UTF-8"))
}

/// The command as one would type it, environment that was set for it first.
pub fn describe(command: &Command) -> String {
    let set = command
        .get_envs()
        .filter_map(|(key, value)| value.map(|value| format!("{}={}", key.display(), quote(&value.to_string_lossy()))));
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    set.chain(words.map(|word| quote(&word.to_string_lossy()))).collect::<Vec<_>>().join(" ")
}

/// The last `lines` lines.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn quote(word: &str) -> String {
    let plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c));
    if plain { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_read_as_one_would_type_them() {
        let mut command = Command::new("cargo");
        command.args(["test", "-p", "a b", "it's"]).env("RUSTFLAGS", "--cfg loom").env_remove("CARGO");
        assert_eq!(describe(&command), r"RUSTFLAGS='--cfg loom' cargo test -p 'a b' 'it'\''s'");
    }

    #[test]
    fn tail_is_the_end() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a\n", 9), "a");
        assert_eq!(tail("", 9), "");
    }
}

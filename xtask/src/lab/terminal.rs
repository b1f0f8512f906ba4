//! The user's terminal while a guest's console is joined to it.
//!
//! Owns raw mode and Ctrl-]. Raw mode is set and put back by `stty`, so that this needs no unsafe code; it is put
//! back however the session ends, by a signal too ([`crate::ending`]), short of SIGKILL. Where stdin is no terminal, bytes are passed on as they come.
//!
//! The thread that reads stdin cannot be interrupted: it lives until the process ends or the next byte is typed,
//! and that byte is lost. A program that asks the user something afterwards would notice; ours does not ask.

use std::io::{IsTerminal, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result, bail};

use super::link::FromTerminal;
use crate::ending::{self, AtEnd};

/// Ctrl-], as `xl console` and telnet have it.
const ESCAPE: u8 = 0x1d;

/// Runs `session` with what is typed.
pub(super) fn joined(session: impl FnOnce(&Receiver<FromTerminal>) -> Result<()>) -> Result<()> {
    let terminal = Terminal::kept();
    terminal.as_ref().map(Terminal::raw).transpose()?;
    let (typed, received) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        let mut stdin = std::io::stdin().lock();
        while let Ok(count @ 1..) = stdin.read(&mut buffer) {
            for event in events(&buffer[..count]) {
                if typed.send(event).is_err() {
                    return;
                }
            }
        }
    });
    session(&received)
}

/// What typed bytes mean.
fn events(bytes: &[u8]) -> Vec<FromTerminal> {
    match bytes.iter().position(|byte| *byte == ESCAPE) {
        None => vec![FromTerminal::Bytes(bytes.to_vec())],
        Some(0) => vec![FromTerminal::Detach],
        Some(at) => vec![FromTerminal::Bytes(bytes[..at].to_vec()), FromTerminal::Detach],
    }
}

/// The terminal's settings as they were, put back when this is dropped and when a signal ends us.
pub(crate) struct Terminal {
    before: String,
    _word: AtEnd,
}

impl Terminal {
    /// Keeps the settings for a program that will change them; `None` where stdin is no terminal.
    pub(crate) fn kept() -> Option<Self> {
        if !std::io::stdin().is_terminal() {
            return None;
        }
        let before = stty(&["-g"]).ok()?.trim().to_owned();
        let settings = before.clone();
        Some(Self { before, _word: ending::at_end(move || put_back(&settings)) })
    }

    /// Sets raw mode, with line ends made whole: a guest that ends its lines with LF alone is read the same.
    fn raw(&self) -> Result<()> {
        stty(&["raw", "-echo", "opost", "onlcr"]).map(drop)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        put_back(&self.before);
    }
}

fn put_back(settings: &str) {
    if stty(&[settings]).is_err() {
        eprintln!("the terminal could not be put back; `stty sane` does it");
    }
}

fn stty(arguments: &[&str]) -> Result<String> {
    let output = Command::new("stty").args(arguments).stdin(Stdio::inherit()).output().context("starting stty")?;
    if !output.status.success() {
        bail!("stty {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(bytes: &[u8]) -> Vec<Option<Vec<u8>>> {
        let name = |event| match event {
            FromTerminal::Bytes(bytes) => Some(bytes),
            FromTerminal::Detach => None,
        };
        events(bytes).into_iter().map(name).collect()
    }

    #[test]
    fn the_escape_ends_what_is_typed() {
        assert_eq!(told(b"ls\r"), [Some(b"ls\r".to_vec())]);
        assert_eq!(told(b"ls\x1drm"), [Some(b"ls".to_vec()), None]);
        assert_eq!(told(b"\x1d"), [None]);
    }
}

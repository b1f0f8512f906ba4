//! A place where `xl` works, whatever it is: the interface that the commands and the ladders drive.
//!
//! Owns the vocabulary ([`Host`], [`Exit`], [`ConsoleLine`], [`Progress`]); the two places are
//! [`crate::lab::Lab`], which starts its own Xen in QEMU, and [`ThisHost`], the machine we run on.
//! Both run scripts in dom0 with a limit, and stream a guest's console from its first byte.
//!
//! Turned down: an interface with one method per `xl` command. What a command prints and how it fails is
//! what the ladders look at, and `xl` is the part of Xen that users already know; hiding it helps nobody.

mod this;

pub use this::ThisHost;

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::ending::AtEnd;

/// How a script in dom0 ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The script's exit code; 128 plus the number where a signal ended it.
    pub code: i32,
    /// What it wrote to stdout and stderr, in the order written.
    pub output: String,
}

impl Exit {
    /// Whether the script ended with 0.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.code == 0
    }

    /// The output of a script that ended with 0.
    /// # Errors
    /// Any other code, as an error that names `what` and holds the code and the output.
    pub fn expect_ok(self, what: &str) -> Result<String> {
        if self.ok() {
            return Ok(self.output);
        }
        bail!("{what} failed with exit code {}:\n{}", self.code, self.output.trim_end());
    }
}

/// One line of a guest's console, without its line end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleLine {
    /// The name given to [`Host::follow`], also while the domain is called `NAME--incoming`.
    pub domain: String,
    /// The line. Bytes that are no UTF-8 are replaced.
    pub text: String,
    /// When it reached us: some tens of milliseconds after the guest wrote it.
    pub at: Instant,
}

/// A place with a dom0 in which `xl` works.
pub trait Host {
    /// One line for reports: where this is, which Xen, how many processors.
    fn describe(&self) -> String;

    /// Runs `script` with a POSIX shell in dom0 and waits for it, not for children that it left behind.
    /// # Errors
    /// When `limit` ends first (the script and its children are killed; the error tells what it had
    /// written), and when the place itself is gone. A script that fails is no error but an [`Exit`].
    fn sh(&mut self, script: &str, limit: Duration) -> Result<Exit>;

    /// Has `script` run when a signal ends us, until the answer is dropped. `None` where the place itself, and all that is
    /// in it, ends with us.
    fn at_end(&self, script: &str) -> Option<AtEnd>;

    /// Puts a file into dom0 and returns its path there. `name` is a plain file name; one that exists is replaced.
    /// # Errors
    /// When `name` holds a slash, dom0 has no room, or the place is gone.
    fn put(&mut self, name: &str, bytes: &[u8]) -> Result<String>;

    /// Streams the console of the domain called `domain` into [`Host::lines`]: every domain that has or will
    /// have this name, restored and migrated ones included, each line once, in order, from the first byte.
    /// Call it before `xl create`. Following twice is the same as once.
    /// # Errors
    /// When the place is gone.
    fn follow(&mut self, domain: &str) -> Result<()>;

    /// Where the lines of followed consoles arrive. It is disconnected when the place is gone.
    fn lines(&mut self) -> &Receiver<ConsoleLine>;

    /// Joins the domain's console to this terminal, in raw mode, until the domain ends or Ctrl-] is typed.
    /// Where stdin is no terminal it is passed on as it is, and its end ends nothing.
    /// # Errors
    /// When `xl console` cannot be started, or the place is gone.
    fn interactive(&mut self, domain: &str) -> Result<()>;

    /// Whether this Xen can migrate PV guests, which needs log-dirty and so shadow paging.
    /// # Errors
    /// When `xl info` fails.
    fn has_log_dirty(&mut self) -> Result<bool> {
        let info = self.sh("xl info", Duration::from_secs(30))?.expect_ok("xl info")?;
        Ok(virt_caps_have_shadow(&info))
    }
}

/// Whether `xl info` lists shadow paging among `virt_caps`.
/// Source: tools/xl/xl_info.c, `output_physinfo`; xen/arch/x86/sysctl.c, `arch_do_physinfo`.
fn virt_caps_have_shadow(info: &str) -> bool {
    info_value(info, "virt_caps").split_whitespace().any(|cap| cap == "shadow")
}

/// What `xl info` says under `key`; "?" where it does not.
pub(crate) fn info_value<'a>(info: &'a str, key: &str) -> &'a str {
    let found = info.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| name.trim() == key);
    found.map_or("?", |(_, value)| value.trim())
}

/// `text` as one word for a POSIX shell, whatever is in it.
#[must_use]
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Told what is being done, so that nobody waits in front of a silent terminal.
pub trait Progress: Send + Sync {
    /// A stage begins, such as "building Xen with shadow paging"; the one before it, if any, has ended well.
    fn stage(&self, name: &str);
    /// What the current stage is doing, or something worth knowing that it found.
    fn note(&self, text: &str);
    /// The last stage has ended well.
    fn finished(&self);
}

/// A [`Progress`] that says nothing.
#[cfg(test)]
pub(crate) struct Silent;

#[cfg(test)]
impl Progress for Silent {
    fn stage(&self, _name: &str) {}
    fn note(&self, _text: &str) {}
    fn finished(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shadow_is_read_from_virt_caps_only() {
        let with = "release : 6.1\nvirt_caps              : pv hvm shadow gnttab-v1\n";
        let without = "virt_caps : pv gnttab-v1\nxen_commandline : shadow\n";
        assert!(virt_caps_have_shadow(with));
        assert!(!virt_caps_have_shadow(without));
        assert!(!virt_caps_have_shadow(""));
    }

    #[test]
    fn quoted_is_one_word_with_the_same_text() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted("$(x)"), "'$(x)'");
    }

    #[test]
    fn a_failed_script_names_code_and_output() {
        let exit = Exit { code: 3, output: "no such domain\n".into() };
        let error = exit.expect_ok("xl destroy").expect_err("code 3 is no success").to_string();
        assert_eq!(error, "xl destroy failed with exit code 3:\nno such domain");
    }
}

//! Which pages a guest writes to, counted by Xen's log-dirty mode for as long as one likes.
//!
//! Owns our program for it in dom0 (`lab/log_dirty_main.rs`) as a thing to ask. A guest cannot see this itself. Shadow paging
//! is needed, as for a migration. A save switches the mode off at its end; asking then is an error, not a count.

#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result};

use crate::drive::cycles::{Kind, NextSuspend, Suspend};
use crate::drive::domain::image;
use crate::drive::guest::Guest;
use crate::host::Host;
use crate::lab::Program;

const LIMIT: Duration = Duration::from_secs(120);

/// The program, in dom0.
#[derive(Clone, Debug)]
pub struct LogDirty {
    path: String,
}

/// What was written to between two looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// How many pages.
    pub pages: u64,
    /// Which, as `1,7-9`.
    pub pfns: String,
}

impl LogDirty {
    /// Puts `program` into dom0.
    ///
    /// # Errors
    /// The host's.
    pub fn put(host: &mut dyn Host, program: &[u8]) -> Result<LogDirty> {
        let path = host.put(Program::LogDirty.name(), program)?;
        host.sh(&format!("chmod 755 {path}"), LIMIT)?.expect_ok("chmod")?;
        Ok(LogDirty { path })
    }

    /// What the guest writes to within `seconds`. The mode is on afterwards.
    ///
    /// # Errors
    /// When the guest fails, or this Xen has no log-dirty mode.
    pub fn within(&self, guest: &mut Guest<'_>, seconds: u32) -> Result<Written> {
        let script = format!("{} $(xl domid {}) on && sleep {seconds}", self.path, guest.name());
        guest.command_ok(&script, guest.limits().command + Duration::from_secs(seconds.into()))?;
        self.now(guest)
    }

    /// What the guest has written to since the last look, or since the mode was switched on.
    ///
    /// # Errors
    /// As above, and when the mode is off.
    pub fn now(&self, guest: &mut Guest<'_>) -> Result<Written> {
        Written::read(&guest.command_ok(&self.take(guest.name()), guest.limits().command)?)
    }

    /// The script behind [`LogDirty::now`], for the domain of this name.
    pub fn take(&self, name: &str) -> String {
        format!("{} $(xl domid {name}) take", self.path)
    }

    /// Saves and restores the guest: what it writes to from its first instruction in the new domain until `seconds` after all of it is
    /// back.
    ///
    /// # Errors
    /// As above, and when it does not come back.
    pub fn of_restore(&self, guest: &mut Guest<'_>, seconds: u32) -> Result<(Suspend, Written)> {
        let (name, image, path) = (guest.name().to_owned(), image(guest.name()), &self.path);
        let script = format!(
            "trap 'rm -f {image}' EXIT; xl save {name} {image} && xl restore -p {image} && \
             {path} $(xl domid {name}) on && xl unpause {name}"
        );
        let next = NextSuspend::of(guest)?;
        guest.command_ok(&script, guest.limits().transfer)?;
        let back = next.came_back(guest, Kind::SaveRestore, Duration::ZERO)?;
        guest.command_ok(&format!("sleep {seconds}"), guest.limits().command)?;
        Ok((back, self.now(guest)?))
    }
}

impl Written {
    /// Reads what the program prints.
    ///
    /// # Errors
    /// When that is something else.
    pub fn read(output: &str) -> Result<Written> {
        let value = |key: &str| output.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let pages = value("dirty").and_then(|pages| pages.parse().ok());
        let pages = pages.with_context(|| format!("log-dirty says no number of pages: {output:?}"))?;
        Ok(Written { pages, pfns: value("pfns").unwrap_or_default().to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_prints_is_read() {
        let written = Written::read("dirty=13 pages=8192 pfns=0,2-3,400-401\n").expect("well formed");
        assert_eq!(written, Written { pages: 13, pfns: "0,2-3,400-401".into() });
        let nothing = Written::read("dirty=0 pages=8192 pfns=").expect("well formed");
        assert_eq!(nothing, Written { pages: 0, pfns: String::new() });
        assert!(Written::read("log-dirty: off").is_err() && Written::read("dirty=x").is_err());
    }
}

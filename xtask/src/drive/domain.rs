//! A domain that we had xl make, and its end, however we end.
//!
//! Owns the names under which a domain may be left behind (xl renames it while it migrates), its saved image, and the
//! script that clears all of it. Turned down: leaving a failed guest for inspection; on a user's machine
//! nothing of ours may stay, and the console's log and the last words are what one looks at.

#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::Result;

use crate::ending::{self, AtEnd};
use crate::host::Host;

/// How long clearing may take. Xen gives a large domain's memory back in seconds, under TCG too.
const LIMIT: Duration = Duration::from_secs(60);

/// A domain that is destroyed when this is dropped and, where the place lives on without us, when a signal ends us.
pub struct Domain<'h> {
    host: &'h mut dyn Host,
    name: String,
    gone: bool,
    /// `None` in a place that ends with us.
    at_end: Option<AtEnd>,
}

impl<'h> Domain<'h> {
    /// For a domain of this name that is about to be created.
    pub fn new(host: &'h mut dyn Host, name: &str) -> Domain<'h> {
        let at_end = host.at_end(&clearing(name));
        Domain { host, name: name.to_owned(), gone: false, at_end }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it runs.
    pub fn host(&mut self) -> &mut dyn Host {
        self.host
    }

    /// It has been seen to be gone: nothing is left to destroy.
    pub fn is_gone(&mut self) {
        self.gone = true;
    }
}

impl Drop for Domain<'_> {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        // The handler of the signal clears up already, and what it needs must not be dropped under it.
        ending::give_way();
        if let (Err(error), Some(_)) = (clear(self.host, &self.name), &self.at_end) {
            eprintln!("the domain {} may still be there; `xl destroy {0}` ends it ({error:#})", self.name);
        }
    }
}

/// Destroys the domain of this name in whatever state it is, under any of the names that a migration gives it, removes
/// its image, and waits until xl knows none of them. That nothing is there is no error.
///
/// # Errors
/// When one stays, with xl's list; and the host's.
pub fn clear(host: &mut dyn Host, name: &str) -> Result<()> {
    host.sh(&clearing(name), LIMIT)?.expect_ok(&format!("destroying the domain {name}")).map(drop)
}

/// Where a saved domain of this name lies in dom0: where there is room for it (the lab's dom0 has a file system of
/// its own there), and where root alone can write.
pub fn image(name: &str) -> String {
    format!("/var/lib/xen/{name}.save")
}

/// A shell's condition: the domain of this name or number has shut down, be it for a suspend or for good.
pub fn has_shut_down(domain: &str) -> String {
    format!("xl list {domain} 2>/dev/null | tail -n 1 | grep -q -e '-[-p]s'")
}

/// The script behind [`clear`].
fn clearing(name: &str) -> String {
    format!(
        "# destroy the domain {name}\n\
         rm -f {image}; all='{name} {name}--incoming {name}--migratedaway'\n\
         for n in $all; do xl destroy $n 2>/dev/null; done\n\
         i=0; for n in $all; do while xl domid $n >/dev/null 2>&1; do \
         i=$((i+1)); if [ $i -ge 100 ]; then xl list; exit 1; fi; sleep 0.2; done; done",
        image = image(name)
    )
}

//! Compiles our programs for dom0: the agent, `log-dirty` and `rogue`.
//!
//! Owns the way from their sources, which are part of this program, to static executables. Named by a
//! hash of the sources, so a change is compiled at the next use. The machine's rustc does it: it is there,
//! because cargo has just built us.
//!
//! Turned down: a second binary of this package. The ladders in `tests/` are other programs that could not
//! find it, and `cargo run` would ask which one is meant.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::cache::Cache;
use super::command;

/// File names and texts, the one with `main` first.
type Sources = [(&'static str, &'static str)];

const AGENT: &Sources = &[
    ("agent_main.rs", include_str!("agent_main.rs")),
    ("agent.rs", include_str!("agent.rs")),
    ("frame.rs", include_str!("frame.rs")),
    ("tail.rs", include_str!("tail.rs")),
];

/// Programs for dom0 that are compiled when they are first wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Tells which pages a domain writes to; for Xen 4.17.
    LogDirty,
    /// Rings guests' ports without end.
    Rogue,
}

impl Program {
    /// Its file's name.
    pub fn name(self) -> &'static str {
        match self {
            Program::LogDirty => "log-dirty",
            Program::Rogue => "rogue",
        }
    }

    fn sources(self) -> [(&'static str, &'static str); 2] {
        let main = match self {
            Program::LogDirty => ("log_dirty_main.rs", include_str!("log_dirty_main.rs")),
            Program::Rogue => ("rogue_main.rs", include_str!("rogue_main.rs")),
        };
        [main, ("privcmd.rs", include_str!("privcmd.rs"))]
    }

    /// Compiled.
    pub(super) fn compiled(self, cache: &Cache) -> Result<PathBuf> {
        compiled(cache, self.name(), &self.sources())
    }
}

/// The compiled agent.
pub(super) fn agent(cache: &Cache) -> Result<PathBuf> {
    compiled(cache, "agent", AGENT)
}

fn compiled(cache: &Cache, name: &str, sources: &Sources) -> Result<PathBuf> {
    let hash = sources.iter().fold(HASH_START, |hash, (_, text)| hash_on(hash, text));
    let directory = cache.artefact(&format!("{name}-{hash:016x}"), |directory| build(directory, name, sources))?;
    Ok(directory.join(name))
}

fn build(directory: &Path, program: &str, sources: &Sources) -> Result<()> {
    for (name, text) in sources {
        std::fs::write(directory.join(name), text).with_context(|| format!("writing {name}"))?;
    }
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut compile = Command::new(rustc);
    // Static, because dom0's C library may be older than this machine's. Cargo's flags are for other crates.
    compile
        .args(["--edition=2024", "-Copt-level=2", "-Cpanic=abort", "-Cstrip=symbols", "-Ctarget-feature=+crt-static"])
        .args(["--target=x86_64-unknown-linux-gnu", "-o"])
        .arg(directory.join(program))
        .args(sources.first().map(|(main, _)| directory.join(main)))
        .env_remove("RUSTFLAGS")
        // rustup chooses the repository's toolchain by the directory.
        .current_dir(super::repository());
    command::output(&format!("compiling {program} for dom0"), &mut compile).map(|_| ())
}

pub(super) const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a: enough to tell versions of our own sources apart, and the same in every build of us.
pub(super) fn hash_on(hash: u64, text: &str) -> u64 {
    text.bytes().fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_sees_every_byte() {
        assert_eq!(hash_on(HASH_START, ""), HASH_START);
        assert_eq!(hash_on(HASH_START, "a"), 0xaf63_dc4c_8601_ec8c);
        assert_ne!(hash_on(HASH_START, "ab"), hash_on(HASH_START, "ba"));
    }
}

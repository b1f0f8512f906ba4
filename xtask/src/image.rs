//! Builds the kernel and leaves the checked, bootable ELF at `target/stasis.elf`.
//!
//! Owns the steps from source to that file. The copy is renamed into place, so whoever reads the file
//! gets a whole image, an older one at worst. A run uses a copy of its own, beside its logs: another run may build another kernel
//! meanwhile, and backtraces are looked up at the end. Two builds at once wait for each other. Turned down: a lock on
//! the one file for as long as a run lasts, which may be hours; a `build.rs` that builds the kernel: cargo
//! would build it for every test of the host tool.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};

use crate::cargo;
use crate::elfcheck::{self, Facts};
use crate::ending::Temporary;
use crate::host::Progress;
use crate::lock;
use crate::progress::Terminal;

/// What the kernel is compiled for.
pub const TARGET: &str = "x86_64-unknown-none";

/// A built and checked image.
#[derive(Clone, Debug)]
pub struct Image {
    /// Where the run's own copy is.
    pub path: PathBuf,
    /// Size of the file, with debug information.
    pub file_bytes: u64,
    /// What the checks found.
    pub facts: Facts,
}

impl Image {
    /// The sizes in words.
    pub fn describe(&self) -> String {
        format!(
            "{} ({} KiB in memory, {} KiB with debug information, {} Xen notes, entry {:#x})",
            self.path.display(),
            self.facts.loaded_bytes.div_ceil(1024),
            self.file_bytes.div_ceil(1024),
            self.facts.notes,
            self.facts.entry
        )
    }
}

/// Where the image is left for everybody.
pub fn path() -> PathBuf {
    cargo::results_dir().join("stasis.elf")
}

/// Builds, checks and places the image; cargo's output goes to a log below `logs`, and so does the run's copy.
///
/// # Errors
/// When the target cannot be had, the build fails, or the ELF would not boot (the fault is named).
pub fn build(terminal: &Terminal, logs: &Path) -> Result<Image> {
    ensure_target(terminal)?;
    terminal.stage("building the kernel");
    // Until it is copied: cargo's own lock ends with the build.
    let _lock = lock::exclusive(&path().with_extension("lock"), "building the kernel", terminal)?;
    let log = logs.join("image.log");
    let mut command = cargo::cargo();
    command.args(["build", "--package", "kernel", "--profile", "image", "--target", TARGET]);
    command.arg("--message-format=json-render-diagnostics");
    let output = cargo::run_ok(command, &log, &mut |line| {
        if !line.starts_with('{') {
            terminal.whisper(line);
        }
    })?;
    let built = executable(&output, "stasis")
        .ok_or_else(|| anyhow!("cargo did not say where it put the kernel; see {}", log.display()))?;
    let image = place(&built, &path(), &logs.join("stasis.elf"))?;
    terminal.finished();
    Ok(image)
}

/// Checks the ELF at `built` and copies it to `to`, and to `own`, which nobody else reads.
fn place(built: &Path, to: &Path, own: &Path) -> Result<Image> {
    let bytes = fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
    let facts = elfcheck::check(&bytes).with_context(|| format!("{} would not boot under Xen", built.display()))?;
    let temporary = Temporary::new(to.with_extension(format!("elf.{}", std::process::id())));
    let partial = temporary.path();
    fs::create_dir_all(to.parent().context("a file has a directory")?)?;
    fs::write(partial, &bytes).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(partial, to).with_context(|| format!("cannot write {}", to.display()))?;
    fs::write(own, &bytes).with_context(|| format!("cannot write {}", own.display()))?;
    Ok(Image { path: own.to_path_buf(), file_bytes: bytes.len() as u64, facts })
}

/// Makes sure that the standard library of [`TARGET`] is installed.
///
/// # Errors
/// When it is not and rustup cannot bring it.
pub fn ensure_target(progress: &dyn Progress) -> Result<()> {
    let mut rustc = Command::new("rustc");
    rustc.current_dir(cargo::root()).args(["--print", "sysroot"]);
    let sysroot = cargo::capture(rustc)?;
    if Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET).is_dir() {
        return Ok(());
    }
    progress.stage(&format!("installing the Rust target {TARGET} (rustup target add {TARGET})"));
    let mut rustup = Command::new("rustup");
    rustup.current_dir(cargo::root()).args(["target", "add", TARGET]);
    let added = cargo::capture(rustup);
    progress.finished();
    added.map(drop).with_context(|| {
        format!("the Rust target {TARGET} is missing and `rustup target add {TARGET}` did not bring it")
    })
}

/// The path of a binary in cargo's JSON messages.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_it = message["reason"] == "compiler-artifact" && message["target"]["name"] == name;
        is_it.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_found_among_cargos_messages() {
        let messages = r#"   Compiling kernel v0.1.0
{"reason":"compiler-artifact","target":{"name":"boot"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"stasis"},"executable":"/t/release/stasis"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "stasis"), Some(PathBuf::from("/t/release/stasis")));
        assert_eq!(executable(messages, "other"), None);
        assert_eq!(executable("", "stasis"), None);
    }

    #[test]
    fn an_image_that_would_not_boot_is_not_placed() {
        if cfg!(miri) {
            return;
        }
        let dir = std::env::temp_dir().join(format!("stasis-image-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("temporary directory");
        let (from, to, own) = (dir.join("bad"), dir.join("stasis.elf"), dir.join("own.elf"));
        fs::write(&from, b"not an ELF").expect("writable");
        let error = place(&from, &to, &own).expect_err("must refuse");
        assert!(format!("{error:#}").contains("would not boot under Xen"), "{error:#}");
        assert!(!to.exists() && !own.exists());
        fs::remove_dir_all(&dir).expect("ours");
    }
}

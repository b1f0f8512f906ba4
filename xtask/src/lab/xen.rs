//! The hypervisor: Debian's own, and the same built again with shadow paging.
//!
//! Owns both ways to a multiboot image that QEMU can load. Debian builds Xen without shadow page tables, and
//! without them there is no log-dirty mode for PV guests and so no live migration. Only the hypervisor is
//! built, from Debian's source package; the tools stay Debian's binaries, which any 4.17 hypervisor serves.
//!
//! Turned down: a fork or a patch. One option is switched on; the source is otherwise what Debian ships.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt::Archive;
use super::command;
use crate::host::Progress;

/// Debian packages that building the hypervisor needs.
pub(super) const BUILD_PACKAGES: [&str; 8] =
    ["bison", "dpkg-dev", "flex", "gcc", "libc6-dev", "make", "patch", "python3"];

/// The versions of Xen whose interface Debian 12's tools speak.
const BRANCH: &str = "4.17.";

/// Debian's hypervisor out of its unpacked package, decompressed: QEMU loads no compressed multiboot image.
pub(super) fn stock(root: &Path, target: &Path) -> Result<()> {
    let packed = root.join("boot/xen-4.17-amd64.gz");
    let image = Command::new("gzip")
        .args(["--decompress", "--stdout"])
        .arg(&packed)
        .output()
        .with_context(|| format!("decompressing {}", packed.display()))?;
    if !image.status.success() || image.stdout.is_empty() {
        bail!("{} cannot be decompressed: {}", packed.display(), String::from_utf8_lossy(&image.stderr).trim());
    }
    std::fs::write(target, image.stdout).with_context(|| format!("writing {}", target.display()))
}

/// Builds the hypervisor with shadow paging in `directory`, leaves it there as `xen`, and returns its version.
pub(super) fn build_shadow(archive: &Archive, directory: &Path, progress: &dyn Progress) -> Result<String> {
    let work = directory.join("work");
    let version = archive.source("xen", BRANCH, &work, progress)?;
    let source = work.join("source/xen");
    std::fs::write(source.join(".config"), "CONFIG_SHADOW_PAGING=y\n# CONFIG_DEBUG is not set\n")
        .context("writing Xen's configuration")?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    progress.note(&format!("building the hypervisor {version} with {jobs} jobs; a minute or two"));
    let make = |target: &str| -> Result<PathBuf> {
        let mut make = Command::new("make");
        // The caller's make, if any, must not reach into this one; nor must its idea of flags.
        for variable in ["MAKEFLAGS", "MAKELEVEL", "MFLAGS", "CFLAGS", "LDFLAGS"] {
            make.env_remove(variable);
        }
        make.arg("-C").arg(&source).arg(format!("-j{jobs}")).arg(target).env("LC_ALL", "C");
        let log = work.join(format!("{target}.log"));
        command::logged(&format!("building Xen {version} ({target})"), &mut make, &log).map(|()| log)
    };
    make("olddefconfig")?;
    let config = std::fs::read_to_string(source.join(".config")).context("reading Xen's configuration")?;
    if !config.lines().any(|line| line == "CONFIG_SHADOW_PAGING=y") {
        bail!("Xen {version} cannot be configured with shadow paging");
    }
    make("build")?;
    std::fs::copy(source.join("xen"), directory.join("xen")).context("keeping the built hypervisor")?;
    // The tree is 200 MiB and only good for building again.
    std::fs::remove_dir_all(&work).context("removing Xen's build tree")?;
    Ok(version)
}

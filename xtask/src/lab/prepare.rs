//! Fills the cache with all that the lab is made of.
//!
//! Owns the order of work and the names of the artefacts. Nothing is fetched or built when all is there: then
//! this takes milliseconds and needs no network. [`RECIPE`] is part of the names; raise it when the content
//! of an artefact changes. `versions` beside each artefact tells which packages it came from.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::agent_build::{self, Program};
use super::apt::{self, Archive};
use super::cache::{self, Cache};
use super::{bzimage, dom0, xen};
use crate::host::Progress;

/// The number of the way in which artefacts are made from packages.
pub(super) const RECIPE: u32 = 2;

/// Debian packages that running the lab needs; rustc links the agent with gcc's and libc6-dev's.
const RUN_PACKAGES: [&str; 4] = ["gcc", "libc6-dev", "qemu-system-x86", "xz-utils"];

/// What the lab is made of, as files.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The hypervisor, a multiboot image: the rebuilt one where shadow paging was asked for.
    pub xen: PathBuf,
    /// dom0's kernel.
    pub kernel: PathBuf,
    /// dom0's kernel release, such as `6.1.0-56-amd64`.
    pub dom0_release: String,
    /// dom0's base archive, without what is ours.
    pub base: PathBuf,
    /// The agent for dom0.
    pub agent: PathBuf,
}

/// Debian packages that [`prepare`] needs on this machine: those for building Xen only where it is still to be built,
/// and all of them at once, so that a user without root is sent away once.
#[must_use]
pub fn packages(want_shadow: bool) -> Vec<&'static str> {
    let mut packages = RUN_PACKAGES.to_vec();
    if want_shadow && !cache::directory().join(shadow_xen()).is_dir() {
        packages.extend(xen::BUILD_PACKAGES);
    }
    packages
}

/// The artefact's name.
fn shadow_xen() -> String {
    format!("xen-shadow-r{RECIPE}")
}

/// Installs the packages that the lab needs and fills the cache; with `want_shadow` also the rebuilt Xen.
/// # Errors
/// When packages cannot be installed (with the command to run), downloaded or built.
pub fn prepare(progress: &dyn Progress, want_shadow: bool) -> Result<Prepared> {
    progress.stage("preparing the lab");
    let cache = Cache::open(&cache::directory(), progress)?;
    apt::require(&packages(want_shadow), progress)?;
    let base = cache.artefact(&format!("base-r{RECIPE}"), |directory| make_base(&cache, directory, progress))?;
    let agent = agent_build::agent(&cache)?;
    let xen = if want_shadow {
        let built = cache.artefact(&shadow_xen(), |directory| {
            progress.stage("building Xen with shadow paging");
            let archive = Archive::open(&cache.path("apt"), progress)?;
            let version = xen::build_shadow(&archive, directory, progress)?;
            write(&directory.join("versions"), &format!("xen (source) {version}\n"))
        })?;
        built.join("xen")
    } else {
        base.join("xen")
    };
    let dom0_release = std::fs::read_to_string(base.join("release")).context("reading dom0's kernel release")?;
    progress.finished();
    Ok(Prepared { xen, kernel: base.join("vmlinux"), dom0_release, base: base.join("base.cpio"), agent })
}

/// One of our programs, to be put into any dom0.
/// # Errors
/// When it cannot be compiled.
pub fn program(program: Program, progress: &dyn Progress) -> Result<Vec<u8>> {
    let cache = Cache::open(&cache::directory(), progress)?;
    let path = program.compiled(&cache)?;
    std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
}

fn make_base(cache: &Cache, directory: &Path, progress: &dyn Progress) -> Result<()> {
    progress.note("fetching dom0's packages");
    let archive = Archive::open(&cache.path("apt"), progress)?;
    let packages = archive.with_libraries(&dom0::PACKAGES)?;
    let root = directory.join("root");
    progress.note(&format!("downloading {} packages, about 100 MB", packages.len()));
    let versions = archive.unpack(&packages, &root)?;
    progress.note("making dom0's archive");
    xen::stock(&root, &directory.join("xen"))?;
    let (kernel, release) = dom0::kernel(&root)?;
    bzimage::unpack(&kernel, &directory.join("vmlinux"))?;
    write(&directory.join("release"), &release)?;
    let base = dom0::base(&root)?;
    std::fs::write(directory.join("base.cpio"), base).context("writing dom0's archive")?;
    let lines: String = versions.iter().map(|(name, version)| format!("{name} {version}\n")).collect();
    write(&directory.join("versions"), &lines)?;
    // 400 MiB of files that dom0 does not use.
    std::fs::remove_dir_all(&root).context("removing the unpacked packages")
}

pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

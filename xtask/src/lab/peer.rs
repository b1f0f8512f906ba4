//! The peer: Debian's Linux as a PV guest, to compare with and to test the lab by.
//!
//! Owns its kernel and its initramfs: busybox and a script that prints a line five times a second, or one that loads our
//! measuring module. Debian's cloud kernel, because it is the smaller one; everything a PV guest needs is built into it.

mod module;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::apt::Archive;
use super::bzimage;
use super::cache::{self, Cache};
use super::cpio;
use super::dom0;
use super::prepare::{RECIPE, write};
use crate::host::Progress;
use module::Kernel;

/// The peer's files.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Linux, as `kernel=` of an xl configuration.
    pub kernel: PathBuf,
    /// Its initramfs, as `ramdisk=`.
    pub initramfs: PathBuf,
}

/// The peer's files, fetched at first use.
/// # Errors
/// When packages cannot be downloaded.
pub fn peer(progress: &dyn Progress) -> Result<Peer> {
    progress.stage("preparing the Linux peer");
    let cache = Cache::open(&cache::directory(), progress)?;
    let directory = cache.artefact(&format!("peer-r{RECIPE}"), |directory| make(&cache, directory, progress))?;
    progress.finished();
    Ok(Peer { kernel: directory.join("vmlinux"), initramfs: directory.join("initramfs.cpio") })
}

/// The peer as it measures: the command line says what, by `peer.bench=` and `peer.n=`, or by `peer.downtime`.
#[derive(Debug, Clone)]
pub struct BenchPeer {
    /// Linux, as `kernel=` of an xl configuration.
    pub kernel: PathBuf,
    /// Its initramfs, the whole archive.
    pub initramfs: Vec<u8>,
    /// Such as `6.1.0-56-cloud-amd64`.
    pub release: String,
}

/// The peer with the measuring modules, which are compiled at first use.
/// # Errors
/// When packages cannot be downloaded or installed (with the command to run), or the modules cannot be compiled.
pub fn bench_peer(progress: &dyn Progress) -> Result<BenchPeer> {
    let Peer { kernel, initramfs } = peer(progress)?;
    progress.stage("preparing the peer's modules");
    let versions = kernel.with_file_name("versions");
    let text = std::fs::read_to_string(&versions).with_context(|| format!("reading {}", versions.display()))?;
    let built_for = Kernel::among(&text).with_context(|| format!("{} names no kernel", versions.display()))?;
    let cache = Cache::open(&cache::directory(), progress)?;
    let modules = module::modules(&cache, &built_for, progress)?;
    let mut archive = std::fs::read(&initramfs).with_context(|| format!("reading {}", initramfs.display()))?;
    // Of two files with one name the kernel keeps the later.
    let mut overlay = cpio::Archive::default();
    overlay.file("init", 0o755, include_bytes!("peer/bench/init.sh"));
    for name in module::MODULES {
        overlay.file(name, 0o644, &std::fs::read(modules.join(name)).with_context(|| format!("reading {name}"))?);
    }
    let program = std::fs::read(modules.join(module::PROGRAM)).context("reading the peer's program")?;
    overlay.file(module::PROGRAM, 0o755, &program);
    archive.extend(overlay.finish());
    progress.finished();
    Ok(BenchPeer { kernel, initramfs: archive, release: built_for.release })
}

fn make(cache: &Cache, directory: &Path, progress: &dyn Progress) -> Result<()> {
    let archive = Archive::open(&cache.path("apt"), progress)?;
    let packages: Vec<String> = archive
        .with_libraries(&["busybox-static", "linux-image-cloud-amd64"])?
        .into_iter()
        .filter(|name| !name.starts_with("lib"))
        .collect();
    let root = directory.join("root");
    progress.note("downloading Debian's cloud kernel");
    let versions = archive.unpack(&packages, &root)?;
    let (kernel, _) = dom0::kernel(&root)?;
    bzimage::unpack(&kernel, &directory.join("vmlinux"))?;
    let mut initramfs = cpio::Archive::default();
    initramfs.file("init", 0o755, include_bytes!("peer/init.sh"));
    initramfs.file("bin/busybox", 0o755, &std::fs::read(root.join("bin/busybox")).context("reading busybox")?);
    for directory in ["dev", "proc", "sys"] {
        initramfs.directory(directory);
    }
    std::fs::write(directory.join("initramfs.cpio"), initramfs.finish()).context("writing the peer's archive")?;
    let lines: String = versions.iter().map(|(name, version)| format!("{name} {version}\n")).collect();
    write(&directory.join("versions"), &lines)?;
    std::fs::remove_dir_all(&root).context("removing the unpacked packages")
}

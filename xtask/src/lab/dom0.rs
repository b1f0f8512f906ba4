//! What the lab's dom0 is made of: a kernel, and an initramfs with `xl` and its daemons.
//!
//! Owns the choice of files. The base archive holds what comes from Debian's packages and is cached; the
//! overlay holds what is ours (`/init`, settings, the agent) and is made anew for each boot, so a change here
//! needs no new base. Both are plain cpio; the kernel unpacks them in this order.
//!
//! Turned down: Debian's own initramfs-tools and systemd, which take a minute to boot under TCG.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::elf;

/// Debian's packages that dom0 is made of, besides the libraries that they depend on.
pub(super) const PACKAGES: [&str; 6] = [
    "busybox-static",
    "libgcc-s1",
    "linux-image-amd64",
    "xen-hypervisor-4.17-amd64",
    "xen-utils-4.17",
    "xenstore-utils",
];

/// Where Debian's xen-utils has its programs; libxl looks for its helpers here.
const XEN_BIN: &str = "usr/lib/xen-4.17/bin";

/// Programs, by directory in the unpacked packages; they have the same place in dom0.
const PROGRAMS: [(&str, &[&str]); 2] = [
    (
        XEN_BIN,
        &[
            "libxl-save-helper",
            "lsevtchn",
            "xen-init-dom0",
            "xenconsole",
            "xenconsoled",
            "xenctx",
            "xenperf",
            "xenstored",
            "xl",
        ],
    ),
    (
        "usr/bin",
        &[
            "xenstore-exists",
            "xenstore-list",
            "xenstore-ls",
            "xenstore-read",
            "xenstore-rm",
            "xenstore-watch",
            "xenstore-write",
        ],
    ),
];

/// Libraries that are loaded at run time, so that no program names them: cancelling a thread, which xl's
/// tools do, aborts without this one.
const HIDDEN_LIBRARIES: [&str; 1] = ["libgcc_s.so.1"];

/// Kernel modules: the line to us, and what the toolstack talks to Xen through.
const MODULES: [&str; 7] =
    ["virtio_pci", "virtio_console", "xen-privcmd", "xen-evtchn", "xen-gntdev", "xen-gntalloc", "xenfs"];

/// Where libraries are in Debian's packages; in dom0 all are in the first.
const LIBRARY_DIRECTORIES: [&str; 4] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", XEN_BIN];

/// Where files put by [`crate::host::Host::put`] land.
pub(super) const INBOX: &str = "/lab/in";

/// xenconsoled's logs.
pub(super) const CONSOLE_LOGS: &str = "/var/log/xen/console";

/// The virtio port with the line to us.
pub(super) const LINE: &str = "/dev/vport0p1";

/// The kernel in the unpacked packages, and its release.
pub(super) fn kernel(root: &Path) -> Result<(PathBuf, String)> {
    let boot = root.join("boot");
    for entry in std::fs::read_dir(&boot).with_context(|| format!("reading {}", boot.display()))? {
        let path = entry.context("reading boot")?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(release) = name.strip_prefix("vmlinuz-") {
            return Ok((path, release.to_owned()));
        }
    }
    bail!("no vmlinuz-* in {}", boot.display());
}

/// The base archive, out of the unpacked packages in `root`.
pub(super) fn base(root: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    let mut wanted: Vec<String> = HIDDEN_LIBRARIES.iter().map(|name| (*name).to_owned()).collect();
    for (directory, names) in PROGRAMS {
        for name in names {
            let content = read(&root.join(directory).join(name))?;
            wanted.extend(elf::libraries(&content).with_context(|| format!("in {name}"))?);
            archive.file(&format!("{directory}/{name}"), 0o755, &content);
        }
    }
    archive.file("bin/busybox", 0o755, &read(&root.join("bin/busybox"))?);
    archive.symlink("bin/sh", "busybox");

    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let needs = |name: &str| elf::libraries(&library(root, name)?).with_context(|| format!("in {name}"));
    for name in elf::closure(&wanted, &needs)? {
        archive.file(&format!("{}/{name}", LIBRARY_DIRECTORIES[0]), 0o755, &library(root, &name)?);
    }
    // The one path that is written into every program.
    archive.symlink("lib64", LIBRARY_DIRECTORIES[0]);

    let (_, release) = kernel(root)?;
    let modules = module_files(&root.join("lib/modules").join(release))?;
    let file = |name: &str| -> Result<&PathBuf> {
        modules.get(&name.replace('-', "_")).with_context(|| format!("Debian's kernel has no module {name}"))
    };
    let needs = |name: &str| elf::module_dependencies(&read(file(name)?)?).with_context(|| format!("in {name}"));
    let order = elf::closure(&MODULES, &needs)?;
    for name in &order {
        archive.file(&format!("lab/modules/{name}.ko"), 0o644, &read(file(name)?)?);
    }
    archive.file("lab/modules/order", 0o644, (order.join("\n") + "\n").as_bytes());
    Ok(archive.finish())
}

/// The overlay: all that is ours.
pub(super) fn overlay(agent: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.file("init", 0o755, include_bytes!("dom0/init.sh"));
    archive.file("lab/up", 0o755, include_bytes!("dom0/up.sh"));
    archive.file("lab/agent", 0o755, agent);
    // dom0 has its memory from Xen's command line; xl must not take any of it for guests.
    archive.file("etc/xen/xl.conf", 0o644, b"autoballoon=\"off\"\n");
    for directory in
        ["dev", "proc", "root", "run/lock", "run/xen", "sys", "tmp", "var/lib/xen", &CONSOLE_LOGS[1..], &INBOX[1..]]
    {
        archive.directory(directory);
    }
    archive.symlink("var/run", "../run");
    archive.symlink("var/lock", "../run/lock");
    archive.finish()
}

fn library(root: &Path, name: &str) -> Result<Vec<u8>> {
    for directory in LIBRARY_DIRECTORIES {
        let path = root.join(directory).join(name);
        if path.exists() {
            return read(&path);
        }
    }
    bail!("no package that dom0 is made of has the library {name}");
}

/// Every module of a kernel, by name with underscores, as the kernel itself counts names equal.
fn module_files(directory: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))? {
            let path = entry.with_context(|| format!("reading {}", directory.display()))?.path();
            if path.is_dir() {
                open.push(path);
            } else if let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".ko")) {
                found.insert(name.replace('-', "_"), path);
            }
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

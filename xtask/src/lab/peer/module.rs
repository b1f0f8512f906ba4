//! Compiles the peer's measuring modules for the peer's very kernel.
//!
//! Owns the way from the sources in `bench/` to `bench.ko` and `downtime.ko`, and to the program that `bench.ko` runs in user mode. Debian's headers, kbuild's programs and compiler flags of the
//! version that the peer boots are unpacked beside it, not installed: a machine's own kernel may be another one, and its headers
//! are not ours to change. Their one absolute path is made relative. Afterwards they are removed, since they are 13000 files
//! that only a changed source would need. They are named by a hash of its sources and of the kernel's version.
//!
//! Turned down: DKMS and installed headers (root, and tied to the machine's kernel), and a kernel of our own with the benches
//! built in, which nobody runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::super::agent_build::{HASH_START, hash_on};
use super::super::apt::{self, Archive};
use super::super::cache::Cache;
use super::super::command;
use crate::host::Progress;

const SOURCES: [(&str, &str); 7] = [
    ("Kbuild", "obj-m := bench.o downtime.o\n"),
    ("bench.c", include_str!("bench/bench.c")),
    ("downtime.c", include_str!("bench/downtime.c")),
    ("guest.h", include_str!("bench/guest.h")),
    ("histogram.h", include_str!("bench/histogram.h")),
    ("user_mode.h", include_str!("bench/user_mode.h")),
    ("user_spin.c", include_str!("bench/user_spin.c")),
];

/// What the machine needs: the compiler that Debian's kernel was built with, and the library of kbuild's objtool.
const BUILD_PACKAGES: [&str; 3] = ["gcc-12", "libelf1", "make"];

/// A Debian kernel, as its package is called.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    /// Such as `6.1.0-56-cloud-amd64`.
    pub(super) release: String,
    /// The package's version, such as `6.1.192-2`.
    pub(super) version: String,
}

impl Kernel {
    /// The kernel among lines of package and version.
    pub(super) fn among(versions: &str) -> Option<Kernel> {
        versions.lines().find_map(|line| {
            let (package, version) = line.split_once(' ')?;
            let release = package.strip_prefix("linux-image-")?;
            // The package that only depends on the newest one has no number.
            release
                .starts_with(|c: char| c.is_ascii_digit())
                .then(|| Kernel { release: release.to_owned(), version: version.to_owned() })
        })
    }

    /// The packages with what modules for it are built from, as apt takes them.
    fn headers(&self) -> Result<Vec<String>> {
        let Kernel { release, version } = self;
        let abi = release.strip_suffix("-cloud-amd64");
        let abi = abi.with_context(|| format!("{release} is no kernel of Debian's cloud flavour"))?;
        let series: Vec<&str> = release.split('.').take(2).collect();
        let names = [
            format!("linux-headers-{release}"),
            format!("linux-headers-{abi}-common"),
            format!("linux-kbuild-{}", series.join(".")),
            "linux-compiler-gcc-12-x86".to_owned(),
        ];
        Ok(names.into_iter().map(|name| format!("{name}={version}")).collect())
    }
}

/// The modules, compiled.
pub(super) const MODULES: [&str; 2] = ["bench.ko", "downtime.ko"];

/// The program that `bench.ko` runs in user mode. It needs no library.
pub(super) const PROGRAM: &str = "user_spin";

/// The directory that holds [`MODULES`] and [`PROGRAM`].
pub(super) fn modules(cache: &Cache, kernel: &Kernel, progress: &dyn Progress) -> Result<PathBuf> {
    let of_kernel = hash_on(hash_on(HASH_START, &kernel.release), &kernel.version);
    let hash = SOURCES.iter().fold(of_kernel, |hash, (_, text)| hash_on(hash, text));
    let directory = cache.artefact(&format!("peer-bench-{hash:016x}"), |directory| {
        apt::require(&BUILD_PACKAGES, progress)?;
        progress.note(&format!("downloading the headers of Linux {}", kernel.release));
        let root = directory.join("root");
        let headers = fetch(cache, kernel, &root, progress)?;
        progress.note("compiling the peer's modules");
        build(&headers, directory)?;
        std::fs::remove_dir_all(&root).context("removing the unpacked headers")
    })?;
    Ok(directory)
}

/// Unpacks the headers in `root`; where in there modules are built from.
fn fetch(cache: &Cache, kernel: &Kernel, root: &Path, progress: &dyn Progress) -> Result<PathBuf> {
    let archive = Archive::open(&cache.path("apt"), progress)?;
    archive.unpack(&kernel.headers()?, root).with_context(|| {
        format!(
            "the headers of Linux {} {}; where Debian has a newer kernel by now, remove the cache's peer-* and both are \
             fetched anew",
            kernel.release, kernel.version
        )
    })?;
    let headers = root.join("usr/src").join(format!("linux-headers-{}", kernel.release));
    let makefile = headers.join("Makefile");
    let text = std::fs::read_to_string(&makefile).with_context(|| format!("reading {}", makefile.display()))?;
    std::fs::write(&makefile, relative(&text)?).with_context(|| format!("writing {}", makefile.display()))?;
    Ok(headers)
}

/// The makefile that includes the common one from where it is unpacked; make runs in the makefile's own directory.
fn relative(makefile: &str) -> Result<String> {
    const INSTALLED: &str = "include /usr/src/";
    if !makefile.contains(INSTALLED) {
        bail!("the makefile of Debian's headers does not include another one from /usr/src: {makefile:?}");
    }
    Ok(makefile.replace(INSTALLED, "include ../"))
}

fn build(headers: &Path, directory: &Path) -> Result<()> {
    for (name, text) in SOURCES {
        std::fs::write(directory.join(name), text).with_context(|| format!("writing {name}"))?;
    }
    let mut make = Command::new("make");
    // A make that runs us would hand its flags down.
    make.env_remove("MAKEFLAGS").env_remove("MFLAGS").env("LC_ALL", "C").current_dir(headers);
    make.arg(format!("M={}", directory.display())).arg("modules");
    command::output("compiling the peer's modules", &mut make)?;
    let mut program = Command::new("gcc-12");
    program.env("LC_ALL", "C").current_dir(directory);
    program.args(["-O2", "-static", "-no-pie", "-nostdlib", "-ffreestanding", "-o", PROGRAM, "user_spin.c"]);
    command::output("compiling the peer's program", &mut program).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSIONS: &str = "busybox-static 1:1.35.0-4\nlinux-image-cloud-amd64 6.1.192-2\n\
                            linux-image-6.1.0-56-cloud-amd64 6.1.192-2\n";

    #[test]
    fn headers_are_those_of_the_very_kernel() {
        let kernel = Kernel::among(VERSIONS).expect("one is there");
        assert_eq!((kernel.release.as_str(), kernel.version.as_str()), ("6.1.0-56-cloud-amd64", "6.1.192-2"));
        let wanted = [
            "linux-headers-6.1.0-56-cloud-amd64=6.1.192-2",
            "linux-headers-6.1.0-56-common=6.1.192-2",
            "linux-kbuild-6.1=6.1.192-2",
            "linux-compiler-gcc-12-x86=6.1.192-2",
        ];
        assert_eq!(kernel.headers().expect("a cloud kernel"), wanted);
        assert_eq!(Kernel::among("busybox-static 1:1.35.0-4\nlinux-image-cloud-amd64 6.1.192-2\n"), None);
        assert_eq!(Kernel::among(""), None);
        let other = Kernel { release: "6.1.0-56-amd64".into(), version: "1".into() };
        assert!(other.headers().is_err(), "not the flavour whose headers are named so");
    }

    #[test]
    fn the_common_makefile_is_found_where_it_is_unpacked() {
        let debians = "include /usr/src/linux-headers-6.1.0-56-common/Makefile\n";
        assert_eq!(relative(debians).expect("as expected"), "include ../linux-headers-6.1.0-56-common/Makefile\n");
        assert!(relative("all:\n").is_err());
    }
}

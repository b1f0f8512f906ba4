//! Debian packages: installs what this machine lacks, and fetches what dom0 is made of.
//!
//! Owns two things. [`require`] installs packages by name on the machine. [`Archive`] is a private view of
//! Debian 12's archive, at the mirrors that this machine's apt uses: its own package lists, with sources, in
//! the cache. So dom0's packages need not be installed here, need no root, and leave /etc/apt as it is.
//!
//! Turned down: debootstrap (minutes and 300 MiB for a dom0 that needs ten programs) and fetching from a
//! fixed mirror (the machine's own one is nearer, and may be the only one it can reach).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::command;
use crate::host::Progress;

/// Makes sure that `packages` are installed on this machine.
/// # Errors
/// Without the right to install, an error that holds the one command to run; and apt's failures.
pub fn require(packages: &[&str], progress: &dyn Progress) -> Result<()> {
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    let Some(mut prefix) = root_prefix() else {
        bail!(
            "these Debian packages are missing: {names}\n\
             Neither root nor a sudo without a password is at hand, so please run:\n    \
             sudo apt-get update && sudo apt-get install --no-install-recommends {names}"
        );
    };
    progress.note(&format!("installing Debian packages: {names}"));
    prefix.extend(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=300"]);
    let apt = |arguments: &[&str]| {
        let mut command = Command::new(prefix[0]);
        command.args(&prefix[1..]).args(arguments);
        command
    };
    // A repository that cannot be reached fails the update but need not matter: the install decides.
    let updated = command::output("updating the package lists", &mut apt(&["update"]));
    let mut install = apt(&["install", "--yes", "--no-install-recommends"]);
    let installed = command::output("installing packages", install.args(&missing));
    match (installed, updated) {
        (Ok(_), _) => Ok(()),
        (Err(error), Ok(_)) => Err(error),
        (Err(error), Err(update)) => Err(error.context(update)),
    }
}

/// What to put before a command so that root runs it; `None` if that is not to be had without a question.
fn root_prefix() -> Option<Vec<&'static str>> {
    let says = |program: &str, arguments: &[&str]| command::output(program, Command::new(program).args(arguments));
    if says("id", &["-u"]).is_ok_and(|id| id.trim() == "0") {
        return Some(Vec::new());
    }
    says("sudo", &["-n", "true"]).ok().map(|_| vec!["sudo", "-n"])
}

/// Those of `packages` that are not installed.
fn missing<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status} ${Package}\n"]).args(packages);
    // It fails as soon as one package is unknown, but lists the others all the same.
    let output = query.output().context("asking dpkg-query; the lab needs a Debian machine")?;
    Ok(not_installed(packages, &String::from_utf8_lossy(&output.stdout)))
}

/// Those of `packages` that dpkg's answer, of lines "status name", does not call installed.
fn not_installed<'a>(packages: &[&'a str], answer: &str) -> Vec<&'a str> {
    let installed: BTreeSet<&str> = answer.lines().filter_map(|line| line.strip_prefix("installed ")).collect();
    // Each once, in the order asked for, however often it was asked for.
    let mut seen = BTreeSet::new();
    packages.iter().copied().filter(|name| !installed.contains(name) && seen.insert(*name)).collect()
}

/// A private view of Debian 12's archive.
pub(super) struct Archive {
    config: PathBuf,
}

impl Archive {
    /// Sets the view up in `directory` and fetches the package lists.
    pub(super) fn open(directory: &Path, progress: &dyn Progress) -> Result<Self> {
        let mut ask = Command::new("apt-get");
        ask.args(["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]);
        let sources = sources(&command::output("listing this machine's package sources", &mut ask)?);
        if sources.is_empty() {
            bail!(
                "this machine's apt has no Debian archive with the component main, where dom0's packages come \
                 from; add Debian 12 (bookworm) to /etc/apt/sources.list.d and try again"
            );
        }
        Self::of(directory, &sources, progress)
    }

    /// The view of these sources.
    fn of(directory: &Path, sources: &str, progress: &dyn Progress) -> Result<Self> {
        for part in ["lists/partial", "archives/partial"] {
            std::fs::create_dir_all(directory.join(part))
                .with_context(|| format!("creating {}", directory.display()))?;
        }
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display())).map(|()| path)
        };
        write("sources.list", sources)?;
        write("status", "")?;
        let archive = Self { config: write("apt.conf", &config(directory))? };
        if !is_fresh(&directory.join(STAMP), sources) {
            progress.note("fetching Debian's package lists");
            // Without the option apt calls it a success when no list could be fetched.
            let mut update = archive.apt("apt-get");
            update.args(["update", "--error-on=any"]);
            command::output("fetching Debian's package lists", &mut update)?;
            write(STAMP, sources)?;
        }
        Ok(archive)
    }

    /// The given packages and all the libraries and kernel images that they depend on. Other dependencies,
    /// such as Perl and Python, are for parts that dom0 leaves out.
    pub(super) fn with_libraries(&self, packages: &[&str]) -> Result<Vec<String>> {
        let mut known: BTreeSet<String> = packages.iter().map(|name| (*name).to_owned()).collect();
        let mut new: Vec<String> = known.iter().cloned().collect();
        while !new.is_empty() {
            let mut ask = self.apt("apt-cache");
            ask.args(["depends", "--important"]).args(&new);
            let answer = command::output("asking for dependencies", &mut ask)?;
            new = dependencies(&answer).into_iter().filter(|name| known.insert(name.clone())).collect();
        }
        Ok(known.into_iter().collect())
    }

    /// Downloads `packages` and unpacks them over each other into `root`. Returns each one's version.
    pub(super) fn unpack(&self, packages: &[String], root: &Path) -> Result<BTreeMap<String, String>> {
        let debs = root.with_extension("debs");
        for directory in [root, &debs] {
            std::fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
        }
        let mut download = self.apt("apt-get");
        download.arg("download").args(packages).current_dir(&debs);
        command::output("downloading Debian packages", &mut download)?;
        let mut versions = BTreeMap::new();
        for entry in std::fs::read_dir(&debs).context("reading the downloaded packages")? {
            let deb = entry.context("reading the downloaded packages")?.path();
            command::output("unpacking a package", Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(root))?;
            let name = deb.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let (package, version) = name_and_version(&name).with_context(|| format!("odd package name {name}"))?;
            versions.insert(package, version);
        }
        std::fs::remove_dir_all(&debs).context("removing the downloaded packages")?;
        Ok(versions)
    }

    /// Downloads the newest source of `package` with a version of `branch` (such as "4.17.") that can be had,
    /// and unpacks it to `into/source`. Returns its version.
    pub(super) fn source(&self, package: &str, branch: &str, into: &Path, progress: &dyn Progress) -> Result<String> {
        let mut ask = self.apt("apt-cache");
        ask.args(["showsrc", "--only-source", package]);
        let answer = command::output("asking for source versions", &mut ask)?;
        let versions = newest_first(branch_versions(&answer, branch))?;
        let mut failures = Vec::new();
        for version in versions {
            let directory = into.join(format!("download-{}", failures.len()));
            std::fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
            let mut get = self.apt("apt-get");
            get.args(["source", "--download-only", &format!("{package}={version}")]).current_dir(&directory);
            match command::output("downloading a source package", &mut get) {
                Ok(_) => {
                    unpack_source(&directory, &into.join("source"))?;
                    return Ok(version);
                }
                // The security archive lists sources some time before it has them: an older one of the branch
                // speaks the same interface to the tools.
                Err(error) => {
                    progress.note(&format!("source {package} {version} cannot be downloaded; trying an older one"));
                    failures.push(format!("{error:#}"));
                }
            }
        }
        bail!("no source of {package} {branch}* can be downloaded\n{}", failures.join("\n"));
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config).env("LC_ALL", "C");
        command
    }
}

/// The file that says from which sources the lists were fetched, and by its age when.
const STAMP: &str = "updated";

/// Whether the lists were fetched from these sources within the last hour. Older ones may name packages that are gone.
fn is_fresh(stamp: &Path, sources: &str) -> bool {
    const HOUR: Duration = Duration::from_secs(3600);
    let modified = std::fs::metadata(stamp).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age < HOUR))
        && std::fs::read_to_string(stamp).is_ok_and(|of| of == sources)
}

/// apt's settings for a view that lives in `directory` only. The keys stay the machine's.
fn config(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "Dir::Etc::sourcelist \"{directory}/sources.list\";\n\
         Dir::Etc::sourceparts \"-\";\n\
         Dir::State::lists \"{directory}/lists\";\n\
         Dir::State::status \"{directory}/status\";\n\
         Dir::Cache::archives \"{directory}/archives\";\n\
         Dir::Cache::pkgcache \"\";\n\
         Dir::Cache::srcpkgcache \"\";\n\
         APT::Architecture \"amd64\";\n\
         APT::Architectures \"amd64\";\n\
         APT::Sandbox::User \"\";\n\
         Acquire::Retries \"3\";\n\
         Acquire::Languages \"none\";\n"
    )
}

/// Debian 12's sources at the places where this machine gets a Debian from. `targets` has lines of place,
/// suite and component. The lab's dom0 is Debian 12's whatever release the machine has: that is the one with
/// Xen 4.17.
fn sources(targets: &str) -> String {
    const RELEASES: [&str; 9] =
        ["bookworm", "trixie", "forky", "stable", "oldstable", "oldoldstable", "testing", "unstable", "sid"];
    let mut lines = BTreeSet::new();
    for target in targets.lines() {
        let mut fields = target.split_whitespace();
        let (Some(place), Some(suite), Some("main")) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (release, kind) = suite.split_once(['-', '/']).unwrap_or((suite, ""));
        if !RELEASES.contains(&release) {
            continue;
        }
        let suite = match kind {
            "" => "bookworm",
            "updates" if place.contains("security") => "bookworm-security",
            "updates" => "bookworm-updates",
            "security" => "bookworm-security",
            _ => continue,
        };
        for kind in ["deb", "deb-src"] {
            lines.insert(format!("{kind} [signed-by={KEYS}] {place} {suite} main\n"));
        }
    }
    lines.into_iter().collect()
}

/// Where Debian's package debian-archive-keyring, which apt depends on, puts the archive's keys.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Libraries and kernel images among the dependencies in `apt-cache depends`' answer.
fn dependencies(answer: &str) -> BTreeSet<String> {
    answer
        .lines()
        .filter_map(|line| line.trim_start_matches([' ', '|']).strip_prefix("Depends: "))
        .filter(|name| ["lib", "zlib", "linux-image-"].iter().any(|start| name.starts_with(start)))
        .map(|name| name.split(':').next().unwrap_or(name).to_owned())
        .collect()
}

/// `name_version_architecture.deb`, where apt writes a colon in the version as `%3a`.
fn name_and_version(file: &str) -> Option<(String, String)> {
    let mut parts = file.strip_suffix(".deb")?.split('_');
    Some((parts.next()?.to_owned(), parts.next()?.replace("%3a", ":")))
}

/// The versions of `branch` in `apt-cache showsrc`' answer.
fn branch_versions(answer: &str, branch: &str) -> BTreeSet<String> {
    let versions = answer.lines().filter_map(|line| line.strip_prefix("Version: "));
    versions.filter(|version| version.starts_with(branch)).map(|version| version.trim().to_owned()).collect()
}

/// Sorts by Debian's rules, which dpkg knows better than we do.
fn newest_first(versions: BTreeSet<String>) -> Result<Vec<String>> {
    let mut sorted: Vec<String> = Vec::new();
    for version in versions {
        let mut place = 0;
        while place < sorted.len() && is_newer(&sorted[place], &version)? {
            place += 1;
        }
        sorted.insert(place, version);
    }
    Ok(sorted)
}

fn is_newer(a: &str, b: &str) -> Result<bool> {
    let status = Command::new("dpkg")
        .args(["--compare-versions", a, "gt", b])
        .status()
        .context("comparing versions with dpkg")?;
    Ok(status.success())
}

fn unpack_source(directory: &Path, target: &Path) -> Result<()> {
    let dsc = std::fs::read_dir(directory)
        .with_context(|| format!("reading {}", directory.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "dsc"))
        .with_context(|| format!("apt-get left no .dsc in {}", directory.display()))?;
    // apt has checked the files against the signed archive; the maintainer's own signature is not needed.
    let mut unpack = Command::new("dpkg-source");
    unpack.args(["--no-check", "--extract"]).arg(dsc).arg(target);
    command::output("unpacking a source package", &mut unpack).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Silent;

    #[test]
    fn only_installed_packages_count() {
        let answer = "installed gcc\nconfig-files flex\nnot-installed bison\n";
        assert_eq!(not_installed(&["gcc", "flex", "bison", "make", "flex"], answer), ["flex", "bison", "make"]);
        assert!(not_installed(&["gcc"], answer).is_empty());
    }

    #[test]
    fn debians_suites_are_kept_and_become_bookworm() {
        let targets = "\
            http://mirror/debian/ bookworm main\n\
            http://mirror/debian/ bookworm contrib\n\
            http://mirror/debian/ bookworm-updates main\n\
            http://mirror/debian/ bookworm-backports main\n\
            http://mirror/debian-security/ stable/updates main\n\
            http://other/apt cloud-sdk-bookworm main\n\
            http://other/node nodistro main\n";
        let sources = sources(targets);
        let lines: Vec<&str> = sources.lines().map(|line| line.split("] ").nth(1).unwrap_or_default()).collect();
        assert_eq!(
            lines,
            [
                "http://mirror/debian-security/ bookworm-security main",
                "http://mirror/debian/ bookworm main",
                "http://mirror/debian/ bookworm-updates main",
                "http://mirror/debian-security/ bookworm-security main",
                "http://mirror/debian/ bookworm main",
                "http://mirror/debian/ bookworm-updates main",
            ]
        );
        assert_eq!(sources.lines().filter(|line| line.starts_with("deb-src ")).count(), 3);
        assert!(super::sources("http://other/apt nodistro main\n").is_empty());
    }

    #[test]
    #[cfg(not(miri))]
    fn lists_count_as_fetched_only_when_they_were() {
        let directory = std::env::temp_dir().join(format!("stasis-apt-{}", std::process::id()));
        // Nothing listens on port 1: the mirror of a machine without network.
        let unreachable = "deb [trusted=yes] http://127.0.0.1:1/debian bookworm main\n";
        let error = Archive::of(&directory, unreachable, &Silent).err().expect("no list can be had");
        assert!(format!("{error:#}").contains("fetching Debian's package lists failed"), "{error:#}");
        assert!(!directory.join(STAMP).exists(), "the next run must try again");

        assert!(Archive::of(&directory, "", &Silent).is_ok(), "no sources, no failure");
        assert!(is_fresh(&directory.join(STAMP), ""));
        assert!(!is_fresh(&directory.join(STAMP), unreachable), "another mirror's lists are to be fetched");
        std::fs::remove_dir_all(directory).expect("our own directory");
    }

    #[test]
    fn libraries_and_kernels_are_followed_and_nothing_else() {
        let answer = "xen-utils-4.17\n  Depends: libc6\n |Depends: libxenstore4\n  Depends: zlib1g\n  Depends: python3\n  Depends: \
                      <python3:any>\n    python3\nlinux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n  Depends: libc6:i386\n";
        let found: Vec<String> = dependencies(answer).into_iter().collect();
        assert_eq!(found, ["libc6", "libxenstore4", "linux-image-6.1.0-56-amd64", "zlib1g"]);
    }

    #[test]
    fn versions_come_from_file_names() {
        assert_eq!(
            name_and_version("busybox-static_1%3a1.35.0-4_amd64.deb"),
            Some(("busybox-static".to_owned(), "1:1.35.0-4".to_owned()))
        );
        assert_eq!(name_and_version("README"), None);
        assert_eq!(name_and_version("odd.deb"), None);
    }

    #[test]
    fn source_versions_are_those_of_the_branch() {
        let answer = "Package: xen\nVersion: 4.17.5+72-1\n\nPackage: xen\nVersion: 4.17.7+13-0\n\nVersion: 4.18.0-1\n";
        let versions: Vec<String> = branch_versions(answer, "4.17.").into_iter().collect();
        assert_eq!(versions, ["4.17.5+72-1", "4.17.7+13-0"]);
        assert!(branch_versions(answer, "4.2.").is_empty());
    }

    #[test]
    #[cfg(not(miri))]
    fn the_newest_version_is_tried_first() {
        let versions = ["4.17.10-1", "4.17.9-1", "4.17.9+1-1", "4.17.9~rc1-1"];
        let sorted =
            newest_first(versions.iter().map(|version| (*version).to_owned()).collect()).expect("dpkg is here");
        assert_eq!(sorted, ["4.17.10-1", "4.17.9+1-1", "4.17.9-1", "4.17.9~rc1-1"]);
    }
}

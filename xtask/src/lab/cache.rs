//! The lab's cache: what was downloaded and built once.
//!
//! Owns the directory, its lock and how something gets in: an artefact is a directory that is made under a
//! temporary name and renamed when it is complete and on the disk. So whatever exists is whole, however a run or the
//! machine was ended before, and no artefact is ever changed, only added; `apt/`, which can be fetched again, is. Names carry what the content depends on (a recipe number
//! or a hash). Removing the directory is always safe while no xtask runs.
//!
//! Turned down: `target/`, because `cargo clean` should not cost a download and a build of Xen.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::host::Progress;
use crate::lock;

/// The cache, locked against other xtask runs until it is dropped.
pub(super) struct Cache {
    root: PathBuf,
    /// Held for its lock only.
    _lock: File,
}

const TEMPORARY: &str = "tmp-";

/// `$STASIS_CACHE`, or `.cache/lab` in the repository.
pub(super) fn directory() -> PathBuf {
    match std::env::var_os("STASIS_CACHE") {
        Some(path) if !path.is_empty() => PathBuf::from(path),
        _ => super::repository().join(".cache/lab"),
    }
}

impl Cache {
    /// Opens the cache at `root`; waits while another run holds it.
    pub(super) fn open(root: &Path, progress: &dyn Progress) -> Result<Self> {
        std::fs::create_dir_all(root).with_context(|| {
            format!("creating the cache {}; STASIS_CACHE=DIRECTORY chooses another place", root.display())
        })?;
        // Some of the tools are run elsewhere and need the full path.
        let root = root.canonicalize().with_context(|| format!("resolving {}", root.display()))?;
        let lock = lock::exclusive(&root.join("lock"), "preparing the lab", progress)?;
        let cache = Self { root, _lock: lock };
        cache.sweep()?;
        Ok(cache)
    }

    /// The path of something in the cache.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The directory of artefact `name`, made by `make` if it is not there yet. `make` fills the empty
    /// directory that it is given.
    pub(super) fn artefact(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let place = self.root.join(name);
        if place.is_dir() {
            return Ok(place);
        }
        // Whatever a killed run left running may still write into its own directory, so ours has another name.
        let temporary = self.root.join(format!("{TEMPORARY}{name}-{}", std::process::id()));
        std::fs::create_dir(&temporary).with_context(|| format!("creating {}", temporary.display()))?;
        make(&temporary)?;
        to_disk(&temporary).with_context(|| format!("writing {name} to the disk"))?;
        std::fs::rename(&temporary, &place).with_context(|| format!("moving {name} into the cache"))?;
        Ok(place)
    }

    /// Removes what interrupted runs left. Safe because we hold the lock.
    fn sweep(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.root).with_context(|| format!("reading {}", self.root.display()))? {
            let path = entry.context("reading the cache")?.path();
            let left = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEMPORARY));
            if left {
                // A compiler of a killed run may still add a file. Nothing uses the directory; the next run sweeps.
                let _ = std::fs::remove_dir_all(&path);
            }
        }
        Ok(())
    }
}

/// Waits until all that is in `directory` is on the disk: a rename may get there before what it renames.
fn to_disk(directory: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            to_disk(&entry.path())?;
        } else if entry.file_type()?.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(directory)?.sync_all()
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::*;
    use crate::host::Silent;
    use anyhow::bail;

    fn root(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("stasis-cache-{name}-{}", std::process::id()))
    }

    #[test]
    fn an_artefact_is_made_once_and_only_whole() {
        let root = root("once");
        let cache = Cache::open(&root, &Silent).expect("a directory of our own");
        let failed = cache.artefact("a-1", |dir| {
            std::fs::write(dir.join("half"), "x").expect("our own directory");
            bail!("interrupted");
        });
        assert!(failed.is_err());
        assert!(!root.join("a-1").exists());
        drop(cache);

        let cache = Cache::open(&root, &Silent).expect("a directory of our own");
        let left = std::fs::read_dir(&root).expect("our own directory");
        assert_eq!(left.filter(|entry| entry.as_ref().is_ok_and(|e| e.path().is_dir())).count(), 0, "swept");
        for _ in 0..2 {
            let mut made = 0;
            let path = cache
                .artefact("a-1", |dir| {
                    made += 1;
                    std::fs::write(dir.join("whole"), "x").context("our own directory")
                })
                .expect("made");
            assert!(path.join("whole").exists() && !path.join("half").exists());
            let again = cache.artefact("a-1", |_| bail!("made twice")).expect("there already");
            assert_eq!(again, path);
            assert!(made <= 1);
        }
        std::fs::remove_dir_all(root).expect("our own directory");
    }

    #[test]
    fn a_second_run_waits_for_the_first() {
        let root = root("lock");
        let first = Cache::open(&root, &Silent).expect("a directory of our own");
        let (told, notes) = std::sync::mpsc::channel();
        struct Told(std::sync::Mutex<std::sync::mpsc::Sender<String>>);
        impl Progress for Told {
            fn stage(&self, _: &str) {}
            fn note(&self, text: &str) {
                self.0.lock().expect("never poisoned").send(text.to_owned()).expect("the test listens");
            }
            fn finished(&self) {}
        }
        let second = {
            let root = root.clone();
            std::thread::spawn(move || Cache::open(&root, &Told(told.into())).expect("opened in the end"))
        };
        assert!(notes.recv().expect("it says so").contains("waiting"));
        assert!(!second.is_finished());
        drop(first);
        second.join().expect("no panic");
        std::fs::remove_dir_all(root).expect("our own directory");
    }
}

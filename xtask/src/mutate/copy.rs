//! A copy of the tree that may be edited: `target/mutate/tree`.
//!
//! Owns that directory. It is brought up to date file by file, and only where something differs, so that cargo finds
//! its last build there still fresh. Turned down: `git worktree`, which would leave out what is not committed.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Hidden, but part of the sources.
const CARGO_CONFIG: &str = ".cargo";

/// The copy, for as long as this lives; nobody else has it.
#[derive(Debug)]
pub struct Copy {
    tree: PathBuf,
    _lock: File,
}

impl Copy {
    /// Brings the copy of `root` below `home` up to date.
    ///
    /// # Errors
    /// When another run has it, or the disk is not willing.
    pub fn of(root: &Path, home: &Path) -> Result<Copy> {
        fs::create_dir_all(home).with_context(|| format!("cannot make {}", home.display()))?;
        let lock = File::options().create(true).append(true).open(home.join(".lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another `cargo xtask mutate` is running in {}", home.display()),
            Err(TryLockError::Error(error)) => return Err(error).context("locking the copy"),
        }
        let tree = home.join("tree");
        sync(root, &tree)?;
        Ok(Copy { tree, _lock: lock })
    }

    /// Where it is.
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// Reads `file`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self, file: &Path) -> Result<String> {
        fs::read_to_string(self.tree.join(file)).with_context(|| format!("cannot read {}", file.display()))
    }

    /// Writes `text` to `file`, if it is not there already.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, file: &Path, text: &str) -> Result<()> {
        put(&self.tree.join(file), text.as_bytes())
    }
}

/// Neither what is built nor what is hidden is part of the sources.
fn is_source(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name == CARGO_CONFIG || (name != "target" && !name.starts_with('.'))
}

fn sync(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let mut here = HashSet::new();
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        if !is_source(&entry.file_name()) {
            continue;
        }
        let (source, copy) = (entry.path(), to.join(entry.file_name()));
        here.insert(entry.file_name());
        if source.is_dir() {
            sync(&source, &copy)?;
        } else {
            put(&copy, &fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?)?;
        }
    }
    for entry in fs::read_dir(to)? {
        let entry = entry?;
        if !here.contains(&entry.file_name()) {
            let path = entry.path();
            if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
    }
    Ok(())
}

fn put(file: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(file).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_follows_the_tree() {
        if cfg!(miri) {
            return;
        }
        let below = std::env::temp_dir().join(format!("stasis-copy-{}", std::process::id()));
        let (root, home) = (below.join("root"), below.join("root/target/mutate"));
        fs::create_dir_all(root.join("a")).expect("ours");
        fs::write(root.join("a/x.rs"), "1").expect("ours");
        fs::write(root.join(".hidden"), "1").expect("ours");
        let copy = Copy::of(&root, &home).expect("ours");
        let file = copy.tree().join("a/x.rs");
        assert_eq!(fs::read_to_string(&file).expect("copied"), "1");
        assert!(!copy.tree().join(".hidden").exists() && !copy.tree().join("target").exists());
        assert!(Copy::of(&root, &home).is_err(), "it is taken");

        copy.write(Path::new("a/x.rs"), "2").expect("ours");
        assert_eq!(fs::read_to_string(root.join("a/x.rs")).expect("there"), "1", "the user's file is as it was");
        drop(copy);
        fs::write(root.join("a/y.rs"), "1").expect("ours");
        let copy = Copy::of(&root, &home).expect("free again");
        assert_eq!(fs::read_to_string(&file).expect("copied"), "1", "an edit that was left is undone");
        assert!(copy.tree().join("a/y.rs").exists());
        drop(copy);
        fs::remove_file(root.join("a/y.rs")).expect("ours");
        let copy = Copy::of(&root, &home).expect("free again");
        assert!(!copy.tree().join("a/y.rs").exists(), "what is gone is gone");
        drop(copy);
        fs::remove_dir_all(below).expect("ours");
    }
}

//! A file lock that keeps two runs of xtask apart, with a word to the user who has to wait for it.

#![forbid(unsafe_code)]

use std::fs::{File, TryLockError};
use std::path::Path;

use anyhow::{Context, Result};

use crate::host::Progress;

/// Locks the file at `path`, which is made, until what is returned is dropped. While another run has it this waits, and says so:
/// `doing` is what that one is at.
///
/// # Errors
/// When the file cannot be made or locked.
pub fn exclusive(path: &Path, doing: &str, progress: &dyn Progress) -> Result<File> {
    let locking = || format!("locking {}", path.display());
    let file = File::options().create(true).append(true).open(path).with_context(locking)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            progress.note(&format!("another xtask is {doing}; waiting for it"));
            file.lock().with_context(locking)?;
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(locking),
    }
    Ok(file)
}

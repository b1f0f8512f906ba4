//! `cargo xtask image`: build the kernel, check it, leave it at `target/stasis.elf`.

#![forbid(unsafe_code)]

use anyhow::Result;

use super::Session;
use crate::image::{self, Image};
use crate::options::LogOptions;

/// Runs the command.
///
/// # Errors
/// As [`image::build`].
pub fn run() -> Result<()> {
    let session = Session::start("image", LogOptions { keep_logs: false })?;
    let built = image::build(&session.terminal, &session.logs);
    let built = built.map(|image| Image { path: image::path(), ..image }.describe());
    session.end(built)
}

//! `cargo xtask setup`: everything that the other commands would fetch or build when they need it.

#![forbid(unsafe_code)]

use anyhow::Result;
use clap::Args;

use super::{Session, check, models};
use crate::host::Progress;
use crate::options::LogOptions;
use crate::{image, lab};

/// Options of the command.
#[derive(Clone, Copy, Debug, Args)]
pub struct SetupOptions {
    /// Do not build the Xen with shadow paging, which only live migration needs.
    #[arg(long)]
    stock_xen: bool,
    #[command(flatten)]
    logs: LogOptions,
}

/// Runs the command.
///
/// # Errors
/// With the one command to run where this user may not install packages.
pub fn run(options: SetupOptions) -> Result<()> {
    let session = Session::start("setup", options.logs)?;
    let outcome = all_of_it(&session, !options.stock_xen);
    session.end(outcome)
}

fn all_of_it(session: &Session, want_shadow: bool) -> Result<String> {
    let progress = &session.terminal;
    image::ensure_target(progress)?;
    let mut packages = lab::packages(want_shadow);
    packages.extend(check::ABI_PACKAGES);
    lab::require(&packages, progress)?;
    lab::prepare(progress, want_shadow)?;
    // Only `test` and `miri` use it, and they skip aloud without: no reason to fail here.
    if let Err(error) = models::ensure_miri(progress) {
        progress.say(&format!("without Miri: {error:#}"));
    }
    progress.finished();
    Ok("Everything is here: cargo xtask migrate".to_owned())
}
